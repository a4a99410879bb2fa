//! What a driver refuses is one clear error: the process lives, the CPU goes on, and so does the device where it can.

mod emulated;

use std::sync::{Mutex, MutexGuard};

use emulated::{device, place, stand_in};
use limpid_cuda::Cuda;
use limpid_tensor::{DType, Device, Map, Result, Tensor};

const OUT_OF_MEMORY: i32 = 2;
const ILLEGAL_ADDRESS: i32 = 700;
const OUT_OF_RESOURCES: i32 = 701;
const MIB: usize = 1 << 20;

/// What fails is the next call, whoever makes it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // Memory is the pool's, as on a card.
    stand_in();
    limpid_cuda::emulated::keep_apart(false);
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn negated(x: &Tensor) -> Result<Tensor> {
    Tensor::map(Map::Neg, &[x])
}

/// On the CPU and on the device, and nothing was found by the checker.
#[track_caller]
fn assert_all_goes_on() {
    let ones = Tensor::ones([3], DType::F32);
    for x in [place(&ones), ones] {
        assert_eq!(negated(&x).unwrap().to_vec::<f32>().unwrap(), [-1.0; 3]);
    }
    assert_eq!(stand_in().take_findings(), []);
}

#[track_caller]
fn message<T>(result: Result<T>) -> String {
    result.err().expect("the driver refused").to_string()
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_launch_that_is_refused_names_the_kernel() {
    let _alone = alone();
    let x = place(&Tensor::ones([5], DType::F32));
    negated(&x).unwrap();
    stand_in().fail_next("cuLaunchKernel", OUT_OF_RESOURCES);
    assert_eq!(
        message(negated(&x)),
        "cuda:0: launching neg_f32: too many resources requested for launch (CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES)"
    );
    assert_all_goes_on();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_kernel_that_cannot_be_loaded_is_asked_for_again() {
    let _alone = alone();
    let x = place(&Tensor::ones([5], DType::F64));
    // Parameters end where the driver says that an index is wrong; anything else is an error.
    for (function, sentence) in [
        ("cuModuleGetFunction", "looking for the kernel exp_f64 of map.cu"),
        ("cuFuncGetParamInfo", "asking for the parameters of exp_f64"),
        ("cuFuncSetAttribute", "asking for shared memory for exp_f64"),
    ] {
        stand_in().fail_next(function, ILLEGAL_ADDRESS);
        assert_eq!(
            message(Tensor::map(Map::Exp, &[&x])),
            format!(
                "cuda:0: {sentence}: an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)"
            )
        );
    }
    let y = Tensor::map(Map::Exp, &[&x]).unwrap().to_vec::<f64>().unwrap();
    assert!(y.iter().all(|y| (y - 1f64.exp()).abs() < 1e-15));
    assert_all_goes_on();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_went_wrong_in_a_kernel_is_told_where_it_is_waited_for() {
    let _alone = alone();
    let cuda = Cuda::of(&device()).unwrap();
    let x = place(&Tensor::ones([5], DType::F32));
    let y = negated(&x).unwrap();
    let words = "an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)";
    stand_in().fail_next("cuStreamSynchronize", ILLEGAL_ADDRESS);
    assert_eq!(message(cuda.synchronize()), format!("cuda:0: waiting for what was queued: {words}"));
    stand_in().fail_next("cuEventSynchronize", ILLEGAL_ADDRESS);
    assert_eq!(message(y.to_vec::<f32>()), format!("cuda:0: waiting for a copy: {words}"));
    assert_eq!(y.to_vec::<f32>().unwrap(), [-1.0; 5]);
    assert_all_goes_on();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn memory_that_is_exhausted_is_told_with_what_holds_it() {
    let _alone = alone();
    let cuda = Cuda::of(&device()).unwrap();
    cuda.release_cache().unwrap();
    stand_in().set_memory(cuda.memory_report().reserved() + 24 * MIB);

    let ask = |bytes: usize| Tensor::zeros([bytes / 4], DType::F32).to(&device());
    let held: Vec<Tensor> = (0..2).map(|_| ask(10 * MIB).unwrap()).collect();
    let error = message(ask(10 * MIB));
    for part in [
        "cuda:0: no memory for 10.0 MiB; of ",
        " that this process took, tensors hold 20.0 MiB",
        "; most is held by blocks of 2 × 10.0 MiB",
        " MiB, 4.0 MiB are free",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert_all_goes_on();
    drop(held);
    assert_eq!(ask(20 * MIB).unwrap().to(&Device::cpu()).unwrap().elements(), 5 * MIB);

    // A driver that has nothing at first is asked again, once what is kept for later has gone back.
    stand_in().set_memory(1 << 30);
    stand_in().fail_next("cuMemAlloc_v2", OUT_OF_MEMORY);
    assert_eq!(ask(40 * MIB).unwrap().elements(), 10 * MIB);
    assert_all_goes_on();

    // A small block is asked for alone where a segment for several is refused, whatever the reason, and none is lost.
    let used = || cuda.memory_report().pool.used;
    cuda.release_cache().unwrap();
    let before = used();
    let segments = || cuda.memory_report().pool.segments_made;
    let (first, mut held) = (segments(), Vec::new());
    stand_in().fail_next("cuMemAlloc_v2", OUT_OF_RESOURCES);
    while segments() == first {
        held.push(ask(3 * MIB).unwrap());
    }
    drop(held);
    assert_eq!(used(), before);
    assert_all_goes_on();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn threads_that_have_ended_hold_nothing() {
    let _alone = alone();
    let cuda = Cuda::of(&device()).unwrap();
    let x = place(&Tensor::ones([5], DType::F64));
    let index = |i: i64| place(&Tensor::from_vec(vec![i], [1]));
    let held = || {
        let report = cuda.memory_report();
        (report.scratch, report.page_locked)
    };
    let thread = |work: &(dyn Fn() + Sync)| std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    // One that has seen no wrong index, and one that has not looked for it.
    thread(&|| assert_eq!(x.gather(0, &index(4)).unwrap().to_vec::<f64>().unwrap(), [1.0]));
    let before = held();
    for _ in 0..10 {
        thread(&|| drop(x.gather(0, &index(5)).unwrap()));
        thread(&|| assert_eq!(x.gather(0, &index(4)).unwrap().to_vec::<f64>().unwrap(), [1.0]));
    }
    assert_eq!(held(), before);

    // A graph of such a thread, replayed by another, writes what nobody is told; above all nobody else.
    let mut wrong = index(4);
    let (mut graph, y) = std::thread::scope(|scope| {
        let capture = || cuda.capture(|| x.gather(0, &wrong)).unwrap();
        scope.spawn(capture).join().unwrap()
    });
    cuda.overwrite(&mut wrong, &Tensor::from_vec(vec![9i64], [1])).unwrap();
    thread(&|| drop(x.gather(0, &index(4)).unwrap()));
    graph.replay().unwrap();
    thread(&|| assert_eq!(x.gather(0, &index(4)).unwrap().to_vec::<f64>().unwrap(), [1.0]));
    drop((graph, y));
    assert_all_goes_on();
}
