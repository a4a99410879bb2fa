//! Products of f32 with factors rounded to tf32. Whether they may be is a setting of the process, so they are tested in one
//! of their own.

#[cfg(has_gxx)]
mod emulated;

#[cfg(has_gxx)]
#[test]
fn floats_are_rounded_once_that_is_allowed() {
    use emulated::{assert_same_bits, place};
    use limpid_cuda::Cuda;
    use limpid_tensor::{DType, Tensor};

    let numbers = |shape: [usize; 2], f: &dyn Fn(usize) -> f64| {
        Tensor::from_f64(&(0..shape[0] * shape[1]).map(f).collect::<Vec<f64>>(), shape, DType::F32)
    };
    // 11 bits: 1 + 2⁻¹¹ is no tf32, and ties go away from zero.
    let fine = numbers([64, 64], &|i| if i % 65 == 0 { 1.0 + 2f64.powi(-11) } else { 0.0 });
    let coarse = numbers([64, 64], &|i| if i % 65 == 0 { 1.0 + 2f64.powi(-10) } else { 0.0 });
    let whole = numbers([64, 64], &|i| (i * 7919 % 1009 % 9) as f64 - 4.0);
    let product = |a: &Tensor, b: &Tensor| place(a).matmul(&place(b));

    assert_same_bits(product(&fine, &whole), fine.matmul(&whole), "exact");
    Cuda::allow_tf32(true);
    assert_same_bits(product(&fine, &whole), coarse.matmul(&whole), "rounded");
    assert_same_bits(product(&whole, &fine), whole.matmul(&coarse), "rounded");
    // Factors that are not contiguous along the sum, or not aligned, are copied.
    let odd = numbers([67, 65], &|i| (i * 31 % 17) as f64 - 8.0).transpose(0, 1);
    let other = numbers([67, 70], &|i| (i * 37 % 15) as f64 - 7.0);
    assert_same_bits(product(&odd, &other), odd.matmul(&other), "copied");
    // Tiles of 128×128.
    let a = numbers([200, 64], &|i| (i * 31 % 17) as f64 - 8.0);
    let batch = a.reshape([1, 200, 64]).unwrap().expand([70, 200, 64]);
    let b = a.slice(0, 0, 100, 1).transpose(0, 1);
    assert_same_bits(product(&batch, &b), batch.matmul(&b), "many tiles");
    Cuda::allow_tf32(false);
    assert_same_bits(product(&fine, &whole), fine.matmul(&whole), "exact again");
}

#[cfg(not(has_gxx))]
#[test]
#[ignore = "g++ is not installed, which compiles kernels for this processor"]
fn floats_are_rounded_once_that_is_allowed() {
    panic!("g++ is not installed");
}
