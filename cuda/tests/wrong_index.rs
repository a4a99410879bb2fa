//! Indices outside their axis. Alone in its process: whoever reads next is told of a wrong index, whoever caused it.

mod emulated;

use emulated::{device, findings, place};
use limpid_tensor::{Device, Result, Tensor};

/// Six rows of four.
fn rows() -> Tensor {
    place(&Tensor::from_vec((0..24).map(|i| i as f32).collect(), [6, 4]))
}

#[track_caller]
fn message(result: Result<Tensor>) -> String {
    result.and_then(|y| y.to(&Device::cpu())).expect_err("the index is wrong").to_string()
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_wrong_index_is_told_when_a_result_is_read() {
    let x = rows();
    // Short columns and long ones, which are added up by different kernels.
    for (wrong, length) in [(-1i64, 7), (6, 7), (i64::MAX, 50), (i64::MIN, 50)] {
        let mut chosen = vec![1i64; length * 4];
        (chosen[13], chosen[17]) = (wrong, wrong);
        let index = place(&Tensor::from_vec(chosen, [length, 4]));
        let found = message(x.gather(0, &index));
        assert_eq!(found, "cuda:0: gather along axis 0: the index at element 13 is outside 0..6");
        let src = place(&Tensor::from_vec(vec![1f32; length * 4], [length, 4]));
        let found = message(x.scatter_add(0, &index, &src));
        assert_eq!(found, "cuda:0: scatter_add along axis 0: the index at element 13 is outside 0..6");
        // It is told once, and what comes after is right.
        assert_eq!(x.to_vec::<f32>().expect("nothing is wrong any more")[23], 23.0);
    }

    // A row of a table that is not there is told by its first element.
    let index = place(&Tensor::from_vec(vec![0, 5, 9], [3, 1])).expand([3, 4]);
    assert_eq!(
        message(x.gather(0, &index)),
        "cuda:0: gather along axis 0: the index at element 8 is outside 0..6"
    );

    // No index fits an axis without elements.
    let nothing = Tensor::zeros([0, 4], limpid_tensor::DType::F32).to(&device()).expect("no bytes to copy");
    let zeros = place(&Tensor::from_vec(vec![0i64; 8], [2, 4]));
    message(nothing.flip(1).gather(0, &zeros));
    message(nothing.scatter_add(0, &zeros, &x.slice(0, 0, 2, 1)));
    assert_eq!(findings(), [""; 0]);
}
