//! The stand-in driver, used as programs use the real one: through `cudarc`.

use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::{self, Ptx};
use limpid_emulator::Kind;
use limpid_emulator::standin::{Config, InstallError, Mistake, StandIn, install};

const TEXT: &str = r#"
#include "factor.cuh"

KERNEL(256, scale, (float* x, int n)) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= FACTOR;
}

KERNEL(256, add, (const float* x, float* y, float amount, int n)) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] + amount;
}

KERNEL(32, too_far, (float* x, int n)) { x[n + threadIdx.x] = 1.0f; }
"#;
const HEADER: &str = "#pragma once\n#define FACTOR (BASE * 2.0f)\n";

/// Elements of the arrays that kernels work on.
const N: usize = 300;
const SEEDS: u64 = 20;

/// One test at a time: they share the stand-in of the process.
struct Bench {
    stand_in: &'static StandIn,
    _turn: MutexGuard<'static, ()>,
}

fn config() -> Config {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-in");
    Config { devices: 2, memory: 1 << 24, cache, ..Config::default() }
}

/// The stand-in, with nothing left of the test before; kernels are compiled with checks if the test says so.
fn bench(check: bool) -> Bench {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let stand_in = install(config()).unwrap_or_else(|error| panic!("{error}"));
    stand_in.set_check(check);
    stand_in.set_seed(1);
    stand_in.take_findings();
    stand_in.reset_calls();
    Bench { stand_in, _turn: turn }
}

impl Bench {
    /// A context without cudarc's own events, so that tests order streams themselves.
    fn context(&self) -> Arc<CudaContext> {
        let context = CudaContext::new(0).unwrap();
        // SAFETY: streams are ordered by the tests, or it is the point of the test that they are not.
        unsafe { context.disable_event_tracking() };
        context
    }

    fn findings(&self) -> Vec<Mistake> {
        self.stand_in.take_findings()
    }

    #[track_caller]
    fn assert_silent(&self) {
        let findings = self.findings();
        assert!(findings.is_empty(), "{}", list(&findings));
    }
}

fn list(findings: &[Mistake]) -> String {
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// Compiles a text that includes factor.cuh: the image, or the compiler's log.
fn compile(text: &str) -> Result<Vec<u8>, String> {
    let [text, name, header, header_name] =
        [text, "scale.cu", HEADER, "factor.cuh"].map(|text| CString::new(text).unwrap());
    let mut program = ptr::null_mut();
    // SAFETY: the texts end in NUL and outlive the call; there is one header, with one name.
    let made = unsafe {
        let (header, name_of_header) = (header.as_ptr(), header_name.as_ptr());
        nvrtc::sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            name.as_ptr(),
            1,
            &header,
            &name_of_header,
        )
    };
    made.result().unwrap();
    let options = ["--gpu-architecture=sm_90a", "-DBASE=1.5f"];
    // SAFETY: the program is alive; what is read of it has the size that it says.
    unsafe {
        let compiled = nvrtc::result::compile_program(program, &options);
        let log: Vec<u8> =
            nvrtc::result::get_program_log(program).unwrap().into_iter().map(|byte| byte as u8).collect();
        let mut bytes = 0;
        let image = compiled.map(|()| {
            nvrtc::sys::nvrtcGetCUBINSize(program, &mut bytes).result().unwrap();
            let mut image = vec![0u8; bytes];
            nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().unwrap();
            image
        });
        nvrtc::result::destroy_program(program).unwrap();
        image.map_err(|_| CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().into_owned())
    }
}

fn function(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    let image = compile(TEXT).unwrap_or_else(|log| panic!("{log}"));
    context.load_module(Ptx::from_binary(image)).unwrap().load_function(name).unwrap()
}

fn grid() -> LaunchConfig {
    LaunchConfig { grid_dim: (N.div_ceil(128) as u32, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 }
}

fn ramp() -> Vec<f32> {
    (0..N).map(|i| i as f32).collect()
}

/// Queues x *= 3.
fn scale(stream: &Arc<CudaStream>, scale: &CudaFunction, x: sys::CUdeviceptr) -> Result<(), DriverError> {
    // SAFETY: the arguments are of the kernel's types, and the array has N elements.
    unsafe { stream.launch_builder(scale).arg(&x).arg(&(N as i32)).launch(grid()) }.map(|_| ())
}

fn allocate(elements: usize) -> sys::CUdeviceptr {
    // SAFETY: the context of the test is current.
    unsafe { result::malloc_sync(elements * size_of::<f32>()) }.unwrap()
}

fn free(address: sys::CUdeviceptr) {
    // SAFETY: the address is one of `allocate`, and is not used again.
    unsafe { result::free_sync(address) }.unwrap();
}

fn upload(stream: &Arc<CudaStream>, to: sys::CUdeviceptr, values: &[f32]) {
    // SAFETY: there is room for the values, which are copied before the call returns.
    unsafe { result::memcpy_htod_async(to, values, stream.cu_stream()) }.unwrap();
}

fn download(stream: &Arc<CudaStream>, from: sys::CUdeviceptr) -> Vec<f32> {
    let mut values = vec![0.0; N];
    // SAFETY: there are as many values, and they are there before the call returns.
    unsafe { result::memcpy_dtoh_async(&mut values, from, stream.cu_stream()) }.unwrap();
    values
}

fn code<T>(result: Result<T, DriverError>) -> Option<CUresult> {
    result.err().map(|error| error.0)
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_program_runs_from_compiling_to_reading_back() {
    for check in [false, true] {
        let bench = bench(check);
        let context = bench.context();
        assert_eq!(context.name().unwrap(), "emulator");
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        let stream = context.new_stream().unwrap();
        let (scale, add) = (function(&context, "scale"), function(&context, "add"));
        let mut x = stream.clone_htod(&ramp()).unwrap();
        let mut y = stream.alloc_zeros::<f32>(N).unwrap();
        let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        // SAFETY: the arguments are of the kernels' types, and the arrays have N elements.
        unsafe {
            stream.launch_builder(&scale).arg(&mut x).arg(&(N as i32)).launch(grid()).unwrap();
            stream
                .launch_builder(&add)
                .arg(&x)
                .arg(&mut y)
                .arg(&1.0f32)
                .arg(&(N as i32))
                .launch(grid())
                .unwrap();
        }
        let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        assert!(!end.is_complete(), "nobody has waited yet");
        assert!(start.elapsed_ms(&end).unwrap() > 0.0);
        let expected: Vec<f32> = ramp().iter().map(|x| x * 3.0 + 1.0).collect();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), expected);
        assert_eq!(bench.stand_in.calls()["cuLaunchKernel"], 2);
        drop((x, y));
        stream.synchronize().unwrap();
        assert_eq!(bench.stand_in.allocations(), Vec::<String>::new());
        bench.assert_silent();
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_compilers_log_names_the_line() {
    let _bench = bench(false);
    let log = compile("#include \"factor.cuh\"\nKERNEL(32, broken, (float* x)) { x[0] = unknown; }\n")
        .err()
        .unwrap();
    assert!(log.contains("scale.cu:2") && log.contains("unknown"), "{log}");
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn functions_know_their_parameters() {
    let bench = bench(false);
    let context = bench.context();
    let image = compile(TEXT).unwrap();
    // SAFETY: the context is current, and the image is of the stand-in's compiler.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap();
    // SAFETY: the module is loaded.
    let function = |name| unsafe { result::module::get_function(module, CString::new(name).unwrap()) };
    assert_eq!(code(function("missing")), Some(CUresult::CUDA_ERROR_NOT_FOUND));
    let add = function("add").unwrap();
    let info = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the pointers are to room for sizes.
        let found = unsafe { sys::cuFuncGetParamInfo(add, index, &mut offset, &mut size) };
        (found == CUresult::CUDA_SUCCESS).then_some((offset, size))
    };
    assert_eq!(
        (0..5).map(info).collect::<Vec<_>>(),
        [Some((0, 8)), Some((8, 8)), Some((16, 4)), Some((20, 4)), None]
    );
    // SAFETY: the module is loaded, and its functions are not used again.
    unsafe { result::module::unload(module) }.unwrap();
    assert_eq!(info(0), None, "the function went with its module");
    drop(context);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn streams_that_nothing_orders_race_in_every_seed() {
    for check in [false, true] {
        let bench = bench(check);
        let context = bench.context();
        let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let (scale_function, x) = (function(&context, "scale"), allocate(N));
        for joined in [false, true] {
            for seed in 1..=SEEDS {
                bench.stand_in.set_seed(seed);
                upload(&first, x, &ramp());
                scale(&first, &scale_function, x).unwrap();
                if joined {
                    second.join(&first).unwrap();
                }
                upload(&second, x, &[7.0]);
                context.synchronize().unwrap();
                let findings = bench.findings();
                match joined {
                    true => assert!(findings.is_empty(), "seed {seed}: {}", list(&findings)),
                    false => assert!(
                        findings.iter().any(|f| matches!(f, Mistake::Race { first, second, .. }
                            if format!("{first} {second}").contains("kernel scale"))),
                        "seed {seed}: {}",
                        list(&findings)
                    ),
                }
            }
        }
        free(x);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_seed_decides_which_of_two_streams_comes_first() {
    let bench = bench(false);
    let context = bench.context();
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let x = allocate(N);
    let mut results = Vec::new();
    for seed in 1..=SEEDS {
        let run = || {
            bench.stand_in.set_seed(seed);
            upload(&first, x, &[1.0; N]);
            upload(&second, x, &[2.0; N]);
            context.synchronize().unwrap();
            download(&first, x)[0]
        };
        let result = run();
        assert_eq!(result, run(), "the same seed, the same order");
        results.push(result);
    }
    assert!(results.contains(&1.0) && results.contains(&2.0), "{results:?}");
    assert!(!bench.findings().is_empty());
    free(x);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_host_and_the_default_stream_order_streams() {
    let bench = bench(true);
    let context = bench.context();
    let stream = context.new_stream().unwrap();
    let other = context.new_stream().unwrap();
    let x = allocate(N);
    upload(&stream, x, &ramp());
    stream.synchronize().unwrap();
    upload(&other, x, &ramp());
    let event = other.record_event(None).unwrap();
    event.synchronize().unwrap();
    upload(&stream, x, &ramp());
    stream.synchronize().unwrap();
    bench.assert_silent();
    // A blocking stream and the default stream wait for each other; the streams above do not.
    let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
    let default_stream = ptr::null_mut();
    for stream in [blocking, default_stream, blocking] {
        // SAFETY: the array has N elements.
        unsafe { result::memset_d8_async(x, 0, N, stream) }.unwrap();
    }
    context.synchronize().unwrap();
    bench.assert_silent();
    // SAFETY: as above, and the stream is not used again.
    unsafe {
        result::memset_d8_async(x, 0, N, default_stream).unwrap();
        result::memset_d8_async(x, 0, N, other.cu_stream()).unwrap();
        result::stream::destroy(blocking).unwrap();
    }
    context.synchronize().unwrap();
    assert!(matches!(bench.findings()[..], [Mistake::Race { .. }]));
    free(x);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn page_locked_memory_is_read_when_the_copy_is_done() {
    let bench = bench(false);
    let context = bench.context();
    let stream = context.new_stream().unwrap();
    let x = allocate(N);
    // SAFETY: the memory has N elements, freed below; the copies read and write no more.
    unsafe {
        let pinned: *mut f32 = result::malloc_host(N * 4, 0).unwrap().cast();
        let values = std::slice::from_raw_parts_mut(pinned, N);
        values.fill(1.0);
        result::memcpy_htod_async(x, values, stream.cu_stream()).unwrap();
        values.fill(2.0); // too early: nobody has waited
        assert_eq!(download(&stream, x)[0], 2.0);
        values.fill(3.0);
        result::memcpy_dtoh_async(values, x, stream.cu_stream()).unwrap();
        assert_eq!(ptr::read_volatile(pinned), 3.0, "the copy back is not waited for");
        stream.synchronize().unwrap();
        assert_eq!(ptr::read_volatile(pinned), 2.0);
        result::free_host(pinned.cast()).unwrap();
    }
    let mut values = ramp();
    upload(&stream, x, &values);
    values.fill(0.0);
    assert_eq!(download(&stream, x), ramp(), "other memory is read at the call");
    free(x);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_graph_does_again_what_was_captured() {
    for check in [false, true] {
        let bench = bench(check);
        let context = bench.context();
        let (stream, branch) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let add = function(&context, "add");
        let (x, y, z) = (allocate(N), allocate(N), allocate(N));
        upload(&stream, x, &[0.0; N]);
        let mut amount = 1.0f32;
        let launch = |stream: &Arc<CudaStream>, from: u64, to: u64, amount: f32| {
            // SAFETY: the arguments are of the kernel's types, and the arrays have N elements.
            unsafe {
                let mut launch = stream.launch_builder(&add);
                launch.arg(&from).arg(&to).arg(&amount).arg(&(N as i32)).launch(grid()).unwrap();
            }
        };
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        // x → y in the stream and x → z in a branch, then x += amount.
        branch.join(&stream).unwrap();
        launch(&stream, x, y, 10.0);
        launch(&branch, x, z, 20.0);
        stream.join(&branch).unwrap();
        launch(&stream, x, x, amount);
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        amount += 100.0; // the graph has its own copy
        let mut nodes = 0;
        // SAFETY: the graph is alive, and its nodes are only counted.
        unsafe { sys::cuGraphGetNodes(graph.cu_graph(), ptr::null_mut(), &mut nodes) }.result().unwrap();
        assert_eq!(nodes, 3);
        assert_eq!(download(&stream, x)[0], 0.0, "capturing does nothing");
        for replay in 1..=SEEDS {
            bench.stand_in.set_seed(replay);
            graph.launch().unwrap();
            let results = [x, y, z].map(|array| download(&stream, array)[N - 1]);
            let before = (replay - 1) as f32;
            assert_eq!(results, [before + 1.0, before + 10.0, before + 20.0]);
        }
        assert!(amount > 100.0);
        drop(graph);
        bench.assert_silent();
        [x, y, z].into_iter().for_each(free);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_graph_whose_branches_collide_is_found() {
    let bench = bench(true);
    let context = bench.context();
    let (stream, branch) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (scale_function, x) = (function(&context, "scale"), allocate(N));
    upload(&stream, x, &ramp());
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    branch.join(&stream).unwrap();
    scale(&stream, &scale_function, x).unwrap();
    scale(&branch, &scale_function, x).unwrap();
    stream.join(&branch).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    stream.synchronize().unwrap();
    bench.assert_silent();
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    assert!(matches!(bench.findings()[..], [Mistake::Race { .. }]));
    free(x);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_cannot_be_captured_breaks_the_capture() {
    let bench = bench(false);
    let context = bench.context();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let x = allocate(N);
    let outside = other.record_event(None).unwrap();
    type Call<'a> = (&'a str, CUresult, Box<dyn Fn() -> Option<CUresult> + 'a>);
    let mut bytes = [0u8; 4];
    let pageable: *mut c_void = bytes.as_mut_ptr().cast();
    // SAFETY: every call is refused, so nothing is used.
    let calls: [Call; 5] = unsafe {
        [
            (
                "allocating",
                CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                Box::new(|| code(result::malloc_sync(4))),
            ),
            (
                "waiting",
                CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                Box::new(|| code(stream.synchronize())),
            ),
            (
                "an outside event",
                CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
                Box::new(|| code(stream.wait(&outside))),
            ),
            (
                "a whole-device wait",
                CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                Box::new(|| code(context.synchronize())),
            ),
            (
                "pageable memory",
                CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                Box::new(|| code(sys::cuMemcpyDtoHAsync_v2(pageable, x, 4, stream.cu_stream()).result())),
            ),
        ]
    };
    for (what, expected, call) in calls {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        assert_eq!(call(), Some(expected), "{what}");
        let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
        assert_eq!(ended, Some(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED), "{what}");
    }
    // A branch that is not joined.
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    other.join(&stream).unwrap();
    // SAFETY: the array has N elements.
    unsafe { result::memset_d8_async(x, 0, N, other.cu_stream()) }.unwrap();
    let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
    assert_eq!(ended, Some(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED));
    // The default stream, and an end without a beginning.
    let default_stream = context.default_stream();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    assert_eq!(
        code(default_stream.begin_capture(mode)),
        Some(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    );
    let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
    assert_eq!(ended, Some(CUresult::CUDA_ERROR_ILLEGAL_STATE));
    bench.assert_silent();
    free(x);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn an_illegal_access_stays_until_the_context_is_gone() {
    let bench = bench(true);
    {
        let context = bench.context();
        let stream = context.new_stream().unwrap();
        let x = allocate(N);
        let too_far = function(&context, "too_far");
        let block = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are of the kernel's types; that it leaves its array is what the test is about.
        unsafe { stream.launch_builder(&too_far).arg(&x).arg(&(N as i32)).launch(block) }.unwrap();
        let illegal = Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(stream.synchronize()), illegal);
        // SAFETY: nothing is allocated or used.
        let allocated = unsafe { result::malloc_sync(4) };
        assert_eq!(code(allocated), illegal);
        assert_eq!(code(context.new_stream()), illegal);
        assert!(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS).to_string().contains("ILLEGAL_ADDRESS"));
        let findings = bench.findings();
        let of_kernel = |finding: &Mistake| {
            matches!(finding, Mistake::Kernel { kernel, finding } if kernel == "too_far"
                && finding.kind == Kind::OutOfBounds && finding.at.is_in("scale.cu", 14))
        };
        assert!(findings.iter().any(of_kernel), "{}", list(&findings));
    }
    let context = bench.context();
    context.new_stream().unwrap().synchronize().unwrap();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn memory_that_is_not_there_is_an_error_that_passes() {
    let bench = bench(false);
    let context = bench.context();
    let stream = context.new_stream().unwrap();
    let most = config().memory;
    // SAFETY: the memory is not used.
    let allocate = |bytes| unsafe { result::malloc_sync(bytes) };
    assert_eq!(code(allocate(most + 1)), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    let all = allocate(most).unwrap();
    assert_eq!(code(allocate(1)), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    assert_eq!(result::mem_get_info().unwrap(), (0, most));
    // SAFETY: the address is of `allocate`, and is not used again.
    unsafe { result::free_async(all, stream.cu_stream()) }.unwrap();
    let again = allocate(most).unwrap(); // waits for the stream to give it back
    free(again);
    bench.stand_in.set_memory(1000);
    assert_eq!(code(allocate(1001)), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    bench.stand_in.set_memory(most);
    bench.assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn memory_is_freed_once_and_not_used_after() {
    let bench = bench(true);
    let context = bench.context();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    // SAFETY: misuse is what the test is about; the stand-in looks addresses up before it uses them.
    unsafe {
        let x = allocate(N);
        free(x);
        assert_eq!(code(result::free_sync(x)), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert!(matches!(bench.findings()[..], [Mistake::DoubleFree { .. }]));
        let copied = result::memcpy_htod_async(x, &[1.0f32], stream.cu_stream());
        assert_eq!(code(copied), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert!(matches!(bench.findings()[..], [Mistake::UseAfterFree { .. }]));
        // The same while the stream has not come to the first free.
        let x = allocate(N);
        result::free_async(x, stream.cu_stream()).unwrap();
        assert_eq!(code(result::free_async(x, stream.cu_stream())), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        assert!(matches!(bench.findings()[..], [Mistake::DoubleFree { .. }]));
        assert_eq!(
            code(result::memset_d8_async(x, 0, N, stream.cu_stream())),
            Some(CUresult::CUDA_ERROR_INVALID_VALUE)
        );
        assert!(matches!(bench.findings()[..], [Mistake::UseAfterFree { .. }]));
        // Freed in one stream while another may still be using it.
        for seed in 1..=SEEDS {
            bench.stand_in.set_seed(seed);
            let context = bench.context();
            let y = allocate(N);
            result::memset_d8_async(y, 0, N, stream.cu_stream()).unwrap();
            result::free_async(y, other.cu_stream()).unwrap();
            let _ = context.synchronize();
            let findings = bench.findings();
            assert!(
                matches!(findings[..], [Mistake::Race { .. } | Mistake::UseAfterFree { .. }]),
                "{}",
                list(&findings)
            );
            if matches!(findings[0], Mistake::UseAfterFree { .. }) {
                return; // the fault stays
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn launches_that_no_card_takes_are_refused() {
    let bench = bench(false);
    let context = bench.context();
    let stream = context.new_stream().unwrap();
    let (scale, x) = (function(&context, "scale"), allocate(N));
    let launch = |grid_dim, block_dim, shared_mem_bytes| {
        let shape = LaunchConfig { grid_dim, block_dim, shared_mem_bytes };
        // SAFETY: the arguments are of the kernel's types, and the array has N elements.
        code(unsafe { stream.launch_builder(&scale).arg(&x).arg(&(N as i32)).launch(shape) })
    };
    assert_eq!(launch((0, 1, 1), (32, 1, 1), 0), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(launch((1, 70_000, 1), (32, 1, 1), 0), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(launch((1, 1, 1), (1025, 1, 1), 0), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(launch((1, 1, 1), (512, 1, 1), 0), Some(CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES));
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 49_153), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
    let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    scale.set_attribute(most, 49_153).unwrap();
    upload(&stream, x, &ramp());
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 49_153), None);
    context.synchronize().unwrap();
    free(x);
    bench.assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn the_next_call_can_be_made_to_fail() {
    let bench = bench(false);
    let context = bench.context();
    bench.stand_in.fail_next("cuStreamCreate", 2);
    assert_eq!(code(context.new_stream()), Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    context.new_stream().unwrap();
    assert_eq!(bench.stand_in.calls()["cuStreamCreate"], 2);
    bench.stand_in.fail_next("nvrtcCompileProgram", 6);
    assert!(compile(TEXT).is_err());
    assert!(compile(TEXT).is_ok());
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn launches_can_be_observed() {
    let bench = bench(true);
    let context = bench.context();
    let stream = context.new_stream().unwrap();
    let (scale_function, x) = (function(&context, "scale"), allocate(N));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    bench.stand_in.count_traffic(true);
    bench.stand_in.observe(move |launched| {
        let requests: u64 = launched.report.traffic.iter().map(|line| line.requests).sum();
        notes.lock().unwrap().push((launched.kernel.to_string(), launched.shape.grid, requests));
    });
    upload(&stream, x, &ramp());
    scale(&stream, &scale_function, x).unwrap();
    assert!(seen.lock().unwrap().is_empty(), "nobody has waited yet");
    stream.synchronize().unwrap();
    bench.stand_in.stop_observing();
    bench.stand_in.count_traffic(false);
    // Ten warps have work, and each loads and stores once.
    assert_eq!(*seen.lock().unwrap(), [("scale".to_string(), [3, 1, 1], 20)]);
    free(x);
    bench.assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn devices_copy_to_each_other() {
    let bench = bench(false);
    let contexts = [0, 1].map(|ordinal| CudaContext::new(ordinal).unwrap());
    let streams = [0, 1].map(|i: usize| contexts[i].new_stream().unwrap());
    let x = streams[0].clone_htod(&ramp()).unwrap();
    streams[0].synchronize().unwrap();
    let mut y = streams[1].alloc_zeros::<f32>(N).unwrap();
    streams[1].memcpy_dtod(&x, &mut y).unwrap();
    assert_eq!(streams[1].clone_dtoh(&y).unwrap(), ramp());
    assert!(bench.stand_in.calls().contains_key("cuMemcpyPeerAsync"));
    bench.assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn there_is_one_stand_in() {
    let bench = bench(false);
    assert!(ptr::eq(install(config()).unwrap(), bench.stand_in));
    let other = install(Config { devices: 3, ..config() });
    assert!(matches!(other, Err(InstallError::Installed)));
}
