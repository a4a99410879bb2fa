//! A test to paste.

use limpid_tensor::{DType, Tensor};

/// More elements than this are not written out.
const WRITTEN: usize = 256;

/// The source of a test, complete but for the path of the operation, that checks `call` at these inputs.
pub(super) fn snippet(name: &str, call: &str, inputs: &[Tensor], seed: u64) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut text =
        format!("#[test]\nfn gradient_of_{name}() {{\n    use limpid::{{Tensor, check::Check}};\n");
    for (i, x) in inputs.iter().enumerate() {
        text += &format!("    let x{i} = {};\n", tensor(x));
    }
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    text += &format!(
        "    Check::new().seed({seed}).run(|x| {call}, &[{}]).expect_pass();\n}}\n",
        names.join(", ")
    );
    text
}

/// A tensor of the same elements in the same layout.
fn tensor(x: &Tensor) -> String {
    let (layout, order) = (x.layout(), storage_order(x));
    let dense = x.permute(&order);
    let is_dense = dense.layout().is_contiguous();
    // What a view leaves out is written too, or there would be nothing to view.
    let stored = layout.span().unwrap_or(0..0);
    if is_dense && x.elements() > WRITTEN || !is_dense && stored.len() > WRITTEN {
        return format!("/* the {} of the failing call */", x.meta());
    }
    let of = |x: &Tensor| format!("Tensor::from_vec({}, {:?})", list(x), &x.shape()[..]);
    if layout.is_contiguous() {
        of(x)
    } else if is_dense {
        let mut inverse = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
        format!("{}.permute(&{inverse:?})", of(&dense))
    } else {
        let whole = x.as_strided([stored.len()], &[1], stored.start);
        let (shape, strides, offset) =
            (&layout.shape()[..], layout.strides(), layout.offset() - stored.start);
        format!("{}.as_strided({shape:?}, &{strides:?}, {offset})", of(&whole))
    }
}

/// The elements in row-major order, as the source of a vector.
fn list(x: &Tensor) -> String {
    let list = match x.dtype() {
        // The first says what the others are.
        DType::I64 => x.to_vec::<i64>().map(|v| match v.split_first() {
            Some((first, rest)) => {
                let rest: String = rest.iter().map(|i| format!(", {i}")).collect();
                format!("[{first}i64{rest}]")
            }
            None => "[0i64; 0]".into(),
        }),
        DType::Bool => x.to_vec::<bool>().map(|v| format!("{v:?}")),
        _ => x
            .to_f64_vec()
            .map(|v| format!("{v:?}").replace("NaN", "f64::NAN").replace("inf", "f64::INFINITY")),
    };
    list.map_or_else(|e| format!("/* {e} */"), |list| format!("vec!{list}"))
}

/// The axes from the largest stride to the smallest.
fn storage_order(x: &Tensor) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.shape().len()).collect();
    order.sort_by_key(|&axis| std::cmp::Reverse(x.layout().strides()[axis]));
    order
}
