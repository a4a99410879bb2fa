//! What a function of the driver answers.

use std::ffi::CStr;

/// An error of the driver, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Status(pub i32);

/// What a function of the driver comes to.
pub(super) type Answer<T = ()> = Result<T, Status>;

macro_rules! statuses {
    ($($name:ident = $number:literal, $words:literal;)*) => {
        impl Status {
            $(pub(super) const $name: Status = Status($number);)*

            /// The name and the words of a number, both ending in NUL.
            fn strings(number: i32) -> Option<(&'static str, &'static str)> {
                match number {
                    0 => Some(("CUDA_SUCCESS\0", "no error\0")),
                    $($number => Some((concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($words, "\0"))),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    NOT_INITIALIZED = 3, "initialization error";
    INVALID_DEVICE = 101, "invalid device ordinal";
    INVALID_IMAGE = 200, "device kernel image is invalid";
    INVALID_CONTEXT = 201, "invalid device context";
    PEER_ACCESS_UNSUPPORTED = 217, "peer access is not supported between these two devices";
    FILE_NOT_FOUND = 301, "file not found";
    INVALID_HANDLE = 400, "invalid resource handle";
    ILLEGAL_STATE = 401, "the operation cannot be performed in the present state";
    NOT_FOUND = 500, "named symbol not found";
    NOT_READY = 600, "device not ready";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    LAUNCH_TIMEOUT = 702, "the launch timed out and was terminated";
    MISALIGNED_ADDRESS = 716, "misaligned address";
    LAUNCH_FAILED = 719, "unspecified launch failure";
    NOT_SUPPORTED = 801, "operation not supported";
    STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when stream is capturing";
    STREAM_CAPTURE_INVALIDATED = 901, "operation failed due to a previous error during capture";
    STREAM_CAPTURE_MERGE = 902, "operation would result in a merge of separate capture sequences";
    STREAM_CAPTURE_UNMATCHED = 903, "capture was not ended in the same stream as it began";
    STREAM_CAPTURE_UNJOINED = 904, "capturing stream has unjoined work";
    STREAM_CAPTURE_ISOLATION = 905, "dependency created on uncaptured work in another stream";
    STREAM_CAPTURE_IMPLICIT = 906, "operation would make the legacy stream depend on a capturing blocking stream";
    CAPTURED_EVENT = 907, "operation not permitted on an event last recorded in a capturing stream";
    STREAM_CAPTURE_WRONG_THREAD = 908, "attempt to terminate a thread-local capture sequence from another thread";
    UNKNOWN = 999, "unknown error";
}

impl Status {
    /// `CUDA_ERROR_OUT_OF_MEMORY` for 2. `None`: there is no such error.
    pub(super) fn name(number: i32) -> Option<&'static CStr> {
        CStr::from_bytes_with_nul(Status::strings(number)?.0.as_bytes()).ok()
    }

    /// `out of memory` for 2. `None`: there is no such error.
    pub(super) fn words(number: i32) -> Option<&'static CStr> {
        CStr::from_bytes_with_nul(Status::strings(number)?.1.as_bytes()).ok()
    }
}
