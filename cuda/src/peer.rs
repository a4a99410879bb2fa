//! From one device's memory to another's, without going through the host.

use cudarc::driver::{result, sys};
use limpid_tensor::{Result, Tensor};

use crate::device::{Cuda, address_of};
use crate::turn::InUse;

impl Cuda {
    /// A tensor of another CUDA device in this one's memory, contiguous. `None` if it lies elsewhere.
    pub(crate) fn fetch(&'static self, x: &Tensor) -> Option<Result<Tensor>> {
        Some(self.fetch_from(Cuda::holding(x)?, x))
    }

    fn fetch_from(&'static self, source: &'static Cuda, x: &Tensor) -> Result<Tensor> {
        if self.is_capturing() || source.is_capturing() {
            return Err(self.error(format!(
                "a tensor of {} is needed while a graph is captured, which belongs to one device",
                source.device_name()
            )));
        }
        let _in_use = self.bind_with(source)?;
        let x = x.contiguous()?;
        let y = self.empty(x.shape(), x.dtype())?;
        let bytes = x.elements() * x.dtype().size();
        // What a kernel of the source could not take is told to whoever reads its results next, and nobody may read them there.
        if source.may_raise() {
            source.synchronize()?;
        }
        if bytes == 0 {
            return Ok(y);
        }
        self.wait_for(source)?;
        self.reach(source)?;
        // SAFETY: both addresses have as many bytes, each in its context. Whatever writes the source comes before, and what
        // uses its memory next behind the copy, since each stream waits for the other.
        let copied = unsafe {
            result::memcpy_peer_async(
                self.context,
                address_of(&y),
                source.context,
                address_of(&x),
                bytes,
                self.stream,
            )
        };
        self.check(format_args!("copying from {}", source.device_name()), copied)?;
        source.wait_for(self)?;
        Ok(y)
    }

    /// Makes what is queued next wait for what another device has queued so far.
    fn wait_for(&self, other: &Cuda) -> Result<()> {
        let _in_use = other.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = other.check("making an event", result::event::create(flags))?;
        // SAFETY: event and streams are alive. An event that is destroyed goes when it has happened.
        let waits = unsafe {
            let waits = result::event::record(event, other.stream).and_then(|()| {
                let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
                result::stream::wait_event(self.stream, event, flags)
            });
            waits.and(result::event::destroy(event))
        };
        self.check(format_args!("waiting for {}", other.device_name()), waits)?;
        self.bind().map(drop)
    }

    /// Binds both devices once neither is another thread's. While it waits for one it does not keep others from capturing on
    /// the other, who might wait for the first.
    fn bind_with(&'static self, other: &'static Cuda) -> Result<[InUse<'static>; 2]> {
        loop {
            let of_other = other.bind()?;
            if let Some(own) = self.turn.try_enter() {
                drop(self.bind()?);
                return Ok([own, of_other]);
            }
            drop(of_other);
            drop(self.bind()?);
        }
    }

    /// Lets this device read the other's memory by itself, where there is a way. Without one the driver copies by way of the host.
    fn reach(&self, other: &Cuda) -> Result<()> {
        let mut reached = self.reached.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if reached.contains(&other.ordinal()) {
            return Ok(());
        }
        let mut can = 0;
        let [own, others] = [self, other].map(|cuda| cuda.ordinal() as sys::CUdevice);
        // SAFETY: both devices exist, and the pointer is to an i32.
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, own, others) }.result();
        self.check(format_args!("asking for a way to {}", other.device_name()), asked)?;
        if can != 0 {
            // SAFETY: this device's context is current, and the other's is alive.
            let status = unsafe { sys::cuCtxEnablePeerAccess(other.context, 0) };
            let is_open = status == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
            let opened = if is_open { Ok(()) } else { status.result() };
            self.check(format_args!("opening a way to {}", other.device_name()), opened)?;
        }
        reached.push(other.ordinal());
        Ok(())
    }
}
