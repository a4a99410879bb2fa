//! A test to paste.

use limpid_tensor::{DType, Tensor};

/// More elements than this are not written out.
const WRITTEN: usize = 96;

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

fn tensor(x: &Tensor) -> String {
    let shape = format!("{:?}", &x.shape()[..]);
    if x.elements() > WRITTEN {
        return format!("/* the {} of the failing call */", x.meta());
    }
    let order = storage_order(x);
    let dense = x.permute(&order);
    let plain = order.iter().copied().eq(0..order.len()) || !dense.layout().is_contiguous();
    let (values, shape) = if plain { (x, shape) } else { (&dense, format!("{:?}", &dense.shape()[..])) };
    let list = match x.dtype() {
        // The first says what the others are.
        DType::I64 => values.to_vec::<i64>().map(|v| match v.split_first() {
            Some((first, rest)) => {
                let rest: String = rest.iter().map(|i| format!(", {i}")).collect();
                format!("[{first}i64{rest}]")
            }
            None => "[0i64; 0]".into(),
        }),
        DType::Bool => values.to_vec::<bool>().map(|v| format!("{v:?}")),
        _ => values
            .to_f64_vec()
            .map(|v| format!("{v:?}").replace("NaN", "f64::NAN").replace("inf", "f64::INFINITY")),
    };
    let source = format!("Tensor::from_vec(vec!{}, {shape})", list.unwrap_or_else(|e| format!("/* {e} */")));
    if plain {
        return source;
    }
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
    format!("{source}.permute(&{inverse:?})")
}

/// The axes from the largest stride to the smallest.
fn storage_order(x: &Tensor) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.shape().len()).collect();
    order.sort_by_key(|&axis| std::cmp::Reverse(x.layout().strides()[axis]));
    order
}
