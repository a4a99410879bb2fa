//! Graphs: what is captured, what stays alive with it, and what leaves no capture open.

mod emulated;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use emulated::{device, findings, is_card, place, stand_in};
use limpid_cuda::Cuda;
use limpid_tensor::{DType, Descent, Error, Map, Pace, Rate, Result, Tensor, WeightStep};

/// Tests of this file count what is the whole device's.
static ALONE: Mutex<()> = Mutex::new(());

fn cuda() -> &'static Cuda {
    let device = device();
    // What these tests are about is the pool.
    limpid_cuda::emulated::keep_apart(false);
    Cuda::of(&device).unwrap()
}

fn numbers(n: usize, first: f64) -> Tensor {
    cuda();
    place(&Tensor::arange(first, first + n as f64, 1.0, DType::F64))
}

fn plus(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Tensor::map(Map::Add, &[a, b])
}

/// A weight before its first step, with zeros for what is remembered, and its gradient.
fn weight(elements: usize, dtype: DType, rule: Descent) -> WeightStep {
    let of = |seed: f64| {
        let values: Vec<f64> = (0..elements).map(|i| (i as f64 * 0.7 + seed).sin()).collect();
        place(&Tensor::from_f64(&values, [elements], dtype))
    };
    WeightStep {
        weight: of(0.0),
        gradient: of(1.0),
        memory: (0..rule.remembers()).map(|_| place(&Tensor::zeros([elements], dtype))).collect(),
        steps: place(&Tensor::scalar(0i64)),
        copy: None,
        rate_scale: 1.0 / elements as f64,
        weight_decay: 0.1,
    }
}

/// A step by a rate in memory, with the norm of all gradients brought to at most `most`.
fn descend(rule: Descent, rate: &Tensor, most: f64, weights: &mut [WeightStep]) -> Result<()> {
    let (device, rate) = (device(), Rate::Stored(rate));
    let gradients: Vec<(&str, &Tensor)> = weights.iter().map(|w| ("w", &w.gradient)).collect();
    let clip = device.backend().norm_and_scale(&gradients, most).expect("the device has a kernel for it")?;
    let mut weights: Vec<&mut WeightStep> = weights.iter_mut().collect();
    let pace = Pace { rate, clip: Some(&clip) };
    device.backend().descend(rule, pace, &mut weights).expect("the device has a kernel for it")
}

fn assert_silent() {
    assert_eq!(findings(), [""; 0]);
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_replay_reads_what_was_overwritten() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (mut x, one) = (numbers(100, 0.0), place(&Tensor::ones([100], DType::F64)));
    plus(&x, &one).unwrap();
    let (mut graph, y) = cuda().capture(|| plus(&plus(&x, &one)?, &x)).unwrap();
    assert_eq!(graph.operations(), 2);
    for first in [10.0, 20.0] {
        let host = Tensor::arange(first, first + 100.0, 1.0, DType::F64);
        cuda().overwrite(&mut x, &host).unwrap();
        graph.replay().unwrap();
        let expected: Vec<f64> = (0..100).map(|i| 2.0 * (first + f64::from(i)) + 1.0).collect();
        assert_eq!(y.to_vec::<f64>().unwrap(), expected);
    }
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_a_graph_uses_is_not_handed_out_again() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (x, during) = (numbers(1000, 0.0), numbers(1000, 5.0));
    plus(&x, &during).unwrap();
    let mut during = Some(during);
    let (mut graph, y) = cuda()
        .capture(|| {
            let y = plus(&x, during.as_ref().unwrap());
            during = None; // dropped while it is captured
            y
        })
        .unwrap();
    let used = cuda().memory_report().pool.used;
    drop(x); // dropped afterwards
    let others: Vec<Tensor> = (0..20).map(|i| numbers(1000, f64::from(i) * 1e6)).collect();
    graph.replay().unwrap();
    let expected: Vec<f64> = (0..1000).map(|i| 2.0 * f64::from(i) + 5.0).collect();
    assert_eq!(y.to_vec::<f64>().unwrap(), expected);
    assert_eq!(others[19].to_vec::<f64>().unwrap()[0], 19e6);
    drop((others, y));
    let report = cuda().memory_report();
    assert_eq!((report.pool.used, report.kept), (used, 16_000), "the graph keeps what it read");
    assert!(report.graphs > 0, "and memory of its own: {report:?}");
    drop(graph);
    let report = cuda().memory_report();
    assert!(report.pool.used < used);
    assert_eq!((report.kept, report.graphs), (0, 0));
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn no_capture_is_left_open() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let x = numbers(4, 1.0);
    plus(&x, &x).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        cuda().capture(|| -> Result<Tensor> {
            plus(&x, &x)?;
            panic!("a mistake")
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(plus(&x, &x).unwrap().to_vec::<f64>().unwrap(), [2.0, 4.0, 6.0, 8.0]);

    let message = |e: Option<Error>| e.map(|e| e.to_string()).unwrap_or_default();
    let nested = cuda().capture(|| cuda().capture(|| plus(&x, &x)).map(|(_, y)| y));
    assert_eq!(message(nested.err()), "cuda:0: a graph is captured inside another");
    let read = cuda().capture(|| plus(&x, &x)?.to_vec::<f64>());
    assert!(message(read.err()).contains("an element is read while a graph is captured"));
    let waited = cuda().capture(|| cuda().synchronize());
    assert!(message(waited.err()).contains("there is nothing to wait for"));

    let (mut graph, y) = cuda().capture(|| plus(&x, &x)).unwrap();
    graph.replay().unwrap();
    assert_eq!(y.to_vec::<f64>().unwrap(), [2.0, 4.0, 6.0, 8.0]);
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_replay_counts_its_step_and_reads_its_rate_and_norm() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let adam = |decoupled| Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled };
    let rules = [Descent::Momentum { momentum: 0.0, nesterov: false }, adam(false), adam(true)];
    let mut rate = place(&Tensor::scalar(0.0f64));
    for rule in rules {
        let begin = || {
            [(5, DType::F32), (9000, DType::F32), (0, DType::F32), (7, DType::F64)]
                .map(|(n, dtype)| weight(n, dtype, rule))
        };
        let set = |rate: &mut Tensor, weights: &mut [WeightStep], t: i32| {
            cuda().overwrite(rate, &Tensor::scalar(0.1 / f64::from(t + 1))).unwrap();
            // Half of 9000 beside it: the norm is 72 in the first three steps, then 67.
            let large = Tensor::full([7], if t < 3 { 10.0 } else { 0.25 }, DType::F64);
            cuda().overwrite(&mut weights[3].gradient, &large).unwrap();
        };
        let found = |weights: &[WeightStep]| -> Vec<Vec<f64>> {
            let tensors =
                weights.iter().flat_map(|w| [&w.weight].into_iter().chain(&w.memory).chain([&w.steps]));
            tensors.map(|x| x.cast(DType::F64).unwrap().to_vec::<f64>().unwrap()).collect()
        };
        let mut eager = begin();
        for t in 0..5 {
            set(&mut rate, &mut eager, t);
            descend(rule, &rate, 70.0, &mut eager).unwrap();
        }
        let mut weights = begin();
        let (mut graph, ()) = cuda().capture(|| descend(rule, &rate, 70.0, &mut weights)).unwrap();
        for t in 0..5 {
            set(&mut rate, &mut weights, t);
            graph.replay().unwrap();
        }
        assert_eq!(found(&weights), found(&eager), "{rule:?}");
        assert!(weights.iter().all(|w| w.steps.to_vec::<i64>().unwrap() == [5]));
    }
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_wrong_index_in_a_replay_is_told_as_if_it_were_not_one() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let x = numbers(4, 0.0);
    let mut index = place(&Tensor::from_vec(vec![0i64, 1, 2], [3]));
    x.gather(0, &index).unwrap();
    let (mut graph, y) = cuda().capture(|| x.gather(0, &index)).unwrap();
    graph.replay().unwrap();
    assert_eq!(y.to_vec::<f64>().unwrap(), [0.0, 1.0, 2.0]);
    for _ in 0..2 {
        cuda().overwrite(&mut index, &Tensor::from_vec(vec![0i64, 1, 9], [3])).unwrap();
        graph.replay().unwrap();
        let message = y.to_vec::<f64>().unwrap_err().to_string();
        assert_eq!(message, "cuda:0: gather along axis 0: the index at element 2 is outside 0..4");
        assert_eq!(x.to_vec::<f64>().unwrap()[3], 3.0, "it is told once");
    }
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn other_threads_wait_for_a_capture() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let x = numbers(8, 0.0);
    plus(&x, &x).unwrap();
    // What a thread does before the capture, and what it finds in the middle of it.
    type Work = fn(Tensor) -> Box<dyn FnOnce() -> f64>;
    let works: [Work; 6] = [
        |x| Box::new(move || plus(&x, &x).unwrap().to_vec::<f64>().unwrap()[7]),
        |x| Box::new(move || device().backend().sums_of_squares(&[&x]).unwrap().unwrap()[0]),
        |x| {
            // A first step, of a weight that is referred to elsewhere.
            let mut first = weight(8, DType::F64, Descent::Momentum { momentum: 0.0, nesterov: false });
            (first.weight, first.gradient, first.weight_decay, first.rate_scale) =
                (x.clone(), x.clone(), 0.0, 1.0);
            Box::new(move || {
                let rule = Descent::Adam { betas: [0.9, 0.999], eps: 1e-8, decoupled: false };
                let pace = Pace { rate: Rate::Number(2.0), clip: None };
                device().backend().descend(rule, pace, &mut [&mut first]).unwrap().unwrap();
                first.weight.to_vec::<f64>().unwrap()[7].round()
            })
        },
        |x| {
            let wrong = x.gather(0, &place(&Tensor::from_vec(vec![0i64, 9], [2]))).unwrap();
            Box::new(move || told(wrong.to_vec::<f64>()))
        },
        |x| {
            let index = place(&Tensor::from_vec(vec![0i64, 9], [2]));
            Box::new(move || told(x.gather(0, &index).and_then(|wrong| wrong.to_vec::<f64>())))
        },
        |x| {
            let wrong = x.gather(0, &place(&Tensor::from_vec(vec![0i64, 9], [2]))).unwrap();
            Box::new(move || {
                cuda().synchronize().expect_err("the index is wrong");
                f64::from(wrong.elements() as u32)
            })
        },
    ];
    fn told(read: Result<Vec<f64>>) -> f64 {
        let message = read.expect_err("the index is wrong").to_string();
        assert_eq!(message, "cuda:0: gather along axis 0: the index at element 1 is outside 0..8");
        9.0
    }
    let (ready, begun) = (Barrier::new(works.len() + 1), Barrier::new(works.len() + 1));
    thread::scope(|scope| {
        let threads = works.map(|work| {
            let (x, ready, begun) = (x.clone(), &ready, &begun);
            scope.spawn(move || {
                let work = work(x);
                ready.wait();
                begun.wait();
                work()
            })
        });
        ready.wait();
        let (graph, ()) = cuda()
            .capture(|| {
                begun.wait();
                for _ in 0..20 {
                    plus(&x, &x)?;
                    thread::sleep(Duration::from_millis(2));
                }
                assert!(device().backend().is_capturing());
                scope.spawn(|| assert!(!device().backend().is_capturing(), "it is not this thread's"));
                Ok::<_, Error>(())
            })
            .unwrap();
        assert_eq!(graph.operations(), 20, "nothing of the other threads");
        let found = threads.map(|thread| thread.join().unwrap());
        assert_eq!(found, [14.0, 140.0, 5.0, 9.0, 9.0, 2.0]);
    });
    assert_silent();
}

/// Neither a kernel of another thread goes into a graph, nor does anybody wait for ever, whatever begins first.
#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn captures_and_the_work_of_other_threads_take_turns() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let x = numbers(8, 0.0);
    let index = place(&Tensor::from_vec(vec![7i64], [1]));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let sum = plus(&x, &x).unwrap().gather(0, &index).unwrap();
                    assert_eq!(sum.to_vec::<f64>().unwrap(), [14.0]);
                    cuda().synchronize().unwrap();
                }
            });
        }
        for _ in 0..100 {
            let (mut graph, y) = cuda().capture(|| plus(&plus(&x, &x)?, &x)).unwrap();
            assert_eq!(graph.operations(), 2, "nothing of the other threads");
            graph.replay().unwrap();
            assert_eq!(y.to_vec::<f64>().unwrap()[7], 21.0);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn what_is_dropped_while_a_graph_is_captured_breaks_no_capture() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let x = numbers(8, 0.0);
    let of_graphs = || cuda().memory_report().graphs;
    let capture = || cuda().capture(|| plus(&x, &x)).unwrap();
    plus(&x, &x).unwrap();
    let before = of_graphs();
    let destroyed = (!is_card()).then(|| stand_in().calls().get("cuGraphExecDestroy").copied().unwrap_or(0));
    let ((mut own, of_own), (mut others, of_others)) = (capture(), capture());
    own.replay().unwrap();
    others.replay().unwrap();
    let (mut graph, y) = cuda()
        .capture(|| {
            drop((own, of_own));
            // Who drops waits for nobody.
            thread::spawn(move || drop((others, of_others))).join().unwrap();
            plus(&x, &x)
        })
        .unwrap();
    graph.replay().unwrap();
    assert_eq!(y.to_vec::<f64>().unwrap()[7], 14.0);
    drop((graph, y));
    assert_eq!(of_graphs(), before, "all is freed at the end");
    if let Some(destroyed) = destroyed {
        assert_eq!(stand_in().calls()["cuGraphExecDestroy"], destroyed + 3);
    }
    assert_silent();
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_capture_makes_room_from_what_is_kept_for_later() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if is_card() {
        println!("a card has other memory than this test allows");
        return;
    }
    let x = numbers(1 << 20, 0.0);
    plus(&x, &x).unwrap();
    cuda().release_cache().unwrap();
    stand_in().set_memory(cuda().memory_report().reserved() + (24 << 20));
    drop((numbers(1 << 20, 0.0), numbers(1 << 20, 1.0))); // the cache has all memory now
    let (mut graph, y) = cuda().capture(|| plus(&x, &x)).unwrap();
    graph.replay().unwrap();
    assert_eq!(y.to_vec::<f64>().unwrap()[77], 154.0);
    let full = cuda().capture(|| (0..10).map(|_| plus(&x, &x)).collect::<Result<Vec<Tensor>>>());
    let message = full.err().unwrap().to_string();
    for part in [
        "cuda:0: no memory for 8.0 MiB; of ",
        "tensors hold 8.0 MiB, ",
        // Of the graph before, of this one, which may not use what the device's own pool has left, and of tests before this.
        ", the inside of graphs ",
        " MiB; the largest free piece has 0 B; ",
        "; most is held by blocks of ",
        " × 8.0 MiB, ",
        " are page-locked; of the device's ",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    stand_in().set_memory(1 << 30);
    assert_eq!(plus(&x, &x).unwrap().to_vec::<f64>().unwrap()[5], 10.0);
    assert_silent();
}
