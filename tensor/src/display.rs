//! A tensor as text.

use std::fmt;

use crate::{Element, Layout, Result, Shape, Tensor};

/// Columns a line may take.
const COLUMNS: usize = 80;
/// Rows that are printed before outer axes are summarised.
const ROWS: usize = 40;
/// Elements at each end of a row that is summarised: what fits if they are one character wide.
const ROW_EDGE: usize = COLUMNS / "0, ".len() / 2;

/// Dtype, shape, device, then the elements, nested in brackets and aligned in columns.
///
/// Large tensors show the ends of each axis around a `…`, so that a line has at most 80 columns. Floats have up to
/// four decimals, or as many as `{:.N}` asks for, and change to scientific notation together when one of them would
/// otherwise be misread as zero or fill the line. If the device cannot be read, the text says so.
///
/// ```
/// use limpid_tensor::{DType, Tensor};
/// let x = Tensor::from_vec(vec![1.0f32, -0.5, 10.25, f32::NAN], [2, 2]);
/// assert_eq!(x.to_string(), "\
/// f32[2, 2] on cpu
/// [[ 1.00, -0.50],
///  [10.25,   NaN]]");
/// assert_eq!(Tensor::arange(0.0, 1000.0, 1.0, DType::I64).slice(0, 0, 1000, 100).to_string(), "\
/// i64[10] on cpu
/// [  0, 100, 200, 300, 400, 500, 600, 700, 800, 900]");
/// assert_eq!(format!("{:.7}", Tensor::scalar(2.0f64.sqrt())), "f64[] on cpu\n1.4142136");
/// ```
impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{self:?}")?;
        match body(self, f.precision()) {
            Ok(text) => f.write_str(&text),
            Err(error) => write!(f, "(its elements cannot be read: {error})"),
        }
    }
}

/// Dtype, shape and device on one line; no element is read.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.meta(), self.device())
    }
}

/// Which positions along an axis are shown, and whether `…` stands in their middle.
struct Axis {
    shown: Vec<usize>,
    gap: bool,
}

impl Axis {
    /// All of `size` positions, or `edge` at each end.
    fn new(size: usize, edge: usize) -> Axis {
        let gap = size > 2 * edge;
        let shown = if gap { (0..edge).chain(size - edge..size).collect() } else { (0..size).collect() };
        Axis { shown, gap }
    }

    /// Fewer of those shown.
    fn narrowed(&self, edge: usize) -> Axis {
        let Axis { shown, gap } = Axis::new(self.shown.len(), edge);
        Axis { shown: shown.into_iter().map(|i| self.shown[i]).collect(), gap: gap || self.gap }
    }

    /// Whether `…` precedes the position that is shown as number `i`.
    fn gap_before(&self, i: usize) -> bool {
        self.gap && i == self.shown.len() / 2
    }
}

fn body(x: &Tensor, precision: Option<usize>) -> Result<String> {
    if x.elements() == 0 {
        return Ok("[]".to_string());
    }
    let Some((&columns, outer)) = x.shape().split_last() else {
        let host = if x.storage().host().is_some() { x.clone() } else { x.device().backend().download(x)? };
        return Ok(cells(&[element(&host, &[])], precision).concat());
    };
    let rows = |edge: usize| outer.iter().map(|&n| n.min(2 * edge)).product::<usize>();
    let edge = if outer.iter().product::<usize>() <= ROWS {
        ROWS
    } else {
        [3, 2].into_iter().find(|&edge| rows(edge) <= ROWS).unwrap_or(1)
    };
    let mut axes: Vec<Axis> = outer.iter().map(|&n| Axis::new(n, edge)).collect();
    axes.push(Axis::new(columns, ROW_EDGE));
    let host = on_host(x, &mut axes)?;

    // The width of a column depends on the elements shown, so the row is shortened until it fits.
    let (outer, row) = axes.split_at(outer.len());
    let mut row = row[0].narrowed(ROW_EDGE);
    let budget = COLUMNS.saturating_sub(2 * x.shape().len() + ",".len());
    loop {
        let text = cells(&elements(&host, outer, &row), precision);
        let width = row.shown.len() * (text[0].chars().count() + 2) + if row.gap { 3 } else { 0 } - 2;
        let edge = row.shown.len().div_ceil(2) - 1;
        if width <= budget || edge == 0 {
            return Ok(nested(&text, outer, &row));
        }
        row = row.narrowed(edge);
    }
}

/// The tensor if the host can read it; else a host copy of the elements shown, to which `axes` then refers.
fn on_host(x: &Tensor, axes: &mut [Axis]) -> Result<Tensor> {
    if x.storage().host().is_some() {
        return Ok(x.clone());
    }
    let mut corner = x.clone();
    for (axis, Axis { shown, gap }) in axes.iter_mut().enumerate() {
        let n = corner.shape()[axis];
        if *gap {
            let (edge, shape) = (shown.len() / 2, corner.shape().with(axis, shown.len()));
            let place = Layout::contiguous(&shape);
            let (head, tail) = (corner.slice(axis, 0, edge, 1), corner.slice(axis, n - edge, n, 1));
            let parts =
                [(place.slice(axis, 0, edge, 1), &head), (place.slice(axis, edge, 2 * edge, 1), &tail)];
            corner = Tensor::assemble(x.device(), shape, x.dtype(), &parts)?;
        }
        *shown = (0..shown.len()).collect();
    }
    x.device().backend().download(&corner)
}

/// One element, of the kinds that are printed alike.
#[derive(Clone, Copy)]
enum Value {
    Float(f64),
    Integer(i64),
    Truth(bool),
}

/// The element at an index of a host tensor.
fn element(x: &Tensor, index: &[usize]) -> Value {
    fn read<T: Element>(bytes: &[u8], at: usize) -> T {
        T::from_bytes(&bytes[at * T::DTYPE.size()..(at + 1) * T::DTYPE.size()])[0]
    }
    let strides = x.layout().strides();
    let steps: isize = index.iter().zip(strides).map(|(&i, &stride)| i as isize * stride).sum();
    let at = (x.layout().offset() as isize + steps) as usize;
    let bytes = x.storage().host().expect("the tensor is in host memory");
    match x.dtype() {
        crate::DType::I64 => Value::Integer(read(bytes, at)),
        crate::DType::Bool => Value::Truth(read(bytes, at)),
        float => Value::Float(with_element!(float, T => read::<T>(bytes, at).to_f64())),
    }
}

/// The elements shown, row by row.
fn elements(x: &Tensor, outer: &[Axis], row: &Axis) -> Vec<Value> {
    let rows: Shape = outer.iter().map(|axis| axis.shown.len()).collect();
    let mut values = Vec::with_capacity(rows.elements() * row.shown.len());
    let mut index = vec![0; outer.len() + 1];
    for number in 0..rows.elements() {
        let mut rest = number;
        for (axis, Axis { shown, .. }) in outer.iter().enumerate().rev() {
            index[axis] = shown[rest % shown.len()];
            rest /= shown.len();
        }
        for &column in &row.shown {
            index[outer.len()] = column;
            values.push(element(x, &index));
        }
    }
    values
}

/// The texts of some elements, all of one width.
fn cells(values: &[Value], precision: Option<usize>) -> Vec<String> {
    let style = FloatStyle::new(values, precision);
    let texts: Vec<String> = values
        .iter()
        .map(|&value| match value {
            Value::Float(v) => style.text(v),
            Value::Integer(v) => v.to_string(),
            Value::Truth(v) => v.to_string(),
        })
        .collect();
    let width = texts.iter().map(String::len).max().unwrap_or(0);
    texts.into_iter().map(|text| format!("{text:>width$}")).collect()
}

/// How all floats of a tensor are written.
struct FloatStyle {
    scientific: bool,
    decimals: usize,
}

impl FloatStyle {
    fn new(values: &[Value], precision: Option<usize>) -> FloatStyle {
        let floats = values.iter().filter_map(|value| match value {
            Value::Float(v) if v.is_finite() && *v != 0.0 => Some(*v),
            _ => None,
        });
        let decimals = precision.unwrap_or(4);
        let (mut smallest, mut largest, mut whole) = (f64::INFINITY, 0.0f64, true);
        for v in floats.clone() {
            (smallest, largest) = (smallest.min(v.abs()), largest.max(v.abs()));
            whole &= v.fract() == 0.0;
        }
        let scientific = if whole { largest >= 1e9 } else { largest >= 1e6 || smallest < 1e-4 };
        let mut style = FloatStyle { scientific, decimals };
        if precision.is_none() {
            // Decimals that are zero in every element say nothing.
            let needed = |v: f64| {
                let text = style.text(v);
                let mantissa = text.split('e').next().unwrap_or(&text);
                mantissa.trim_end_matches('0').split('.').nth(1).map_or(0, str::len)
            };
            style.decimals = floats.map(needed).max().unwrap_or(0).max(1);
        }
        style
    }

    fn text(&self, v: f64) -> String {
        let decimals = self.decimals;
        if self.scientific && v.is_finite() && v != 0.0 {
            format!("{v:.decimals$e}")
        } else {
            format!("{v:.decimals$}")
        }
    }
}

/// The texts in brackets, one row a line, an empty line between matrices.
fn nested(cells: &[String], outer: &[Axis], row: &Axis) -> String {
    let depth = outer.len();
    let mut text = "[".repeat(depth);
    for (number, cells) in cells.chunks_exact(row.shown.len()).enumerate() {
        if number > 0 {
            // The outermost axis along which this row is the next one; those inside it start again.
            let (mut axis, mut position) = (depth - 1, number);
            while position.is_multiple_of(outer[axis].shown.len()) {
                position /= outer[axis].shown.len();
                axis -= 1;
            }
            let inside = depth - 1 - axis;
            let separator = format!("{}{}", "\n".repeat(inside + 1), " ".repeat(axis + 1));
            text += &format!("{},", "]".repeat(inside));
            if outer[axis].gap_before(position % outer[axis].shown.len()) {
                text += &format!("{separator}…,");
            }
            text += &separator;
            text += &"[".repeat(inside);
        }
        text += "[";
        for (i, cell) in cells.iter().enumerate() {
            let gap = if row.gap_before(i) { "…, " } else { "" };
            let separator = if i > 0 { ", " } else { "" };
            text.extend([separator, gap, cell]);
        }
        text += "]";
    }
    text + &"]".repeat(depth)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::primitive::{Map, Reduce};
    use crate::rng::{Distribution, Key};
    use crate::{Backend, DType, Device, Error, HostBuffer, StorageRef};

    fn range(shape: &[usize]) -> Tensor {
        let n = shape.iter().product::<usize>() as f64;
        Tensor::from_f64(&(0..n as usize).map(|i| i as f64).collect::<Vec<_>>(), shape, DType::I64)
    }

    #[track_caller]
    fn assert_text(x: &Tensor, lines: &[&str]) {
        assert_eq!(x.to_string(), lines.join("\n"), "\n{x}");
    }

    #[test]
    fn scalars_and_tensors_without_elements() {
        assert_text(&Tensor::scalar(1.5f32), &["f32[] on cpu", "1.5"]);
        assert_text(&Tensor::scalar(true), &["bool[] on cpu", "true"]);
        assert_text(&Tensor::scalar(i64::MIN), &["i64[] on cpu", "-9223372036854775808"]);
        assert_text(&Tensor::zeros([0, 3], DType::BF16), &["bf16[0, 3] on cpu", "[]"]);
        assert_eq!(format!("{:?}", Tensor::zeros([0, 3], DType::F32)), "f32[0, 3] on cpu");
    }

    #[test]
    fn floats_share_their_decimals_and_notation() {
        let line = |values: &[f64]| {
            Tensor::from_slice(values, [values.len()]).to_string().lines().nth(1).unwrap().to_string()
        };
        assert_eq!(line(&[1.0, 2.0, 100.0]), "[  1.0,   2.0, 100.0]");
        assert_eq!(line(&[0.5, 1.25, -3.0]), "[ 0.50,  1.25, -3.00]");
        assert_eq!(line(&[1.0 / 3.0, 2.0]), "[0.3333, 2.0000]");
        assert_eq!(line(&[0.0, -0.0, f64::NAN]), "[ 0.0, -0.0,  NaN]");
        assert_eq!(line(&[f64::INFINITY, f64::NEG_INFINITY, 1.0]), "[ inf, -inf,  1.0]");
        assert_eq!(line(&[1.25e-5, 0.0, 1.0]), "[1.25e-5,    0.00,  1.00e0]");
        assert_eq!(line(&[1234567.5, f64::NAN]), "[1.2346e6,      NaN]");
        assert_eq!(line(&[123456789.0, -1.0]), "[123456789.0,        -1.0]");
        assert_eq!(line(&[1e300]), "[1.0e300]");
        assert_eq!(line(&[f64::from_bits(1)]), "[4.9407e-324]");
    }

    #[test]
    fn nested_axes_are_aligned() {
        let mask = Tensor::from_vec(vec![true, false, false, true], [2, 2]);
        assert_text(&mask, &["bool[2, 2] on cpu", "[[ true, false],", " [false,  true]]"]);
        assert_text(
            &range(&[2, 2, 1, 2]),
            &[
                "i64[2, 2, 1, 2] on cpu",
                "[[[[0, 1]],",
                "",
                "  [[2, 3]]],",
                "",
                "",
                " [[[4, 5]],",
                "",
                "  [[6, 7]]]]",
            ],
        );
    }

    #[test]
    fn views_print_what_they_show() {
        let x = range(&[2, 3]);
        assert_text(&x.transpose(0, 1), &["i64[3, 2] on cpu", "[[0, 3],", " [1, 4],", " [2, 5]]"]);
        assert_text(&x.flip(1).slice(0, 1, 2, 1), &["i64[1, 3] on cpu", "[[5, 4, 3]]"]);
        let row = x.slice(0, 0, 1, 1).expand([2, 3]);
        assert_text(&row, &["i64[2, 3] on cpu", "[[0, 1, 2],", " [0, 1, 2]]"]);
        // Ten thousand million elements, three of them in memory.
        let huge = x.slice(0, 0, 1, 1).slice(1, 1, 2, 1).expand([100_000, 100_000]);
        assert_eq!(huge.to_string().lines().count(), 1 + 3 + 1 + 3);
    }

    #[test]
    fn large_tensors_show_their_edges() {
        assert_text(
            &range(&[100, 100]),
            &[
                "i64[100, 100] on cpu",
                "[[   0,    1,    2,    3,    4,    5, …,   94,   95,   96,   97,   98,   99],",
                " [ 100,  101,  102,  103,  104,  105, …,  194,  195,  196,  197,  198,  199],",
                " [ 200,  201,  202,  203,  204,  205, …,  294,  295,  296,  297,  298,  299],",
                " …,",
                " [9700, 9701, 9702, 9703, 9704, 9705, …, 9794, 9795, 9796, 9797, 9798, 9799],",
                " [9800, 9801, 9802, 9803, 9804, 9805, …, 9894, 9895, 9896, 9897, 9898, 9899],",
                " [9900, 9901, 9902, 9903, 9904, 9905, …, 9994, 9995, 9996, 9997, 9998, 9999]]",
            ],
        );
    }

    #[test]
    fn no_line_is_longer_than_80_columns() {
        let normal = Distribution::Normal { mean: 0.0, std: 1e-6 };
        for shape in
            [vec![27], vec![11], vec![7, 9, 11], vec![50, 50, 50, 50], vec![1, 1, 1, 1, 13], vec![3; 7]]
        {
            for x in [
                Tensor::random(normal, shape.clone(), DType::F64, Key::new(1)).unwrap(),
                range(&shape),
                Tensor::full(shape.clone(), i64::MIN as f64, DType::I64),
                Tensor::zeros(shape.clone(), DType::Bool),
            ] {
                let text = x.to_string();
                assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
                assert!(text.lines().filter(|line| line.contains(']')).count() <= 1 + 64, "{text}");
                let count = |c: char| text.lines().skip(1).flat_map(str::chars).filter(|&x| x == c).count();
                assert_eq!(count('['), count(']'), "{text}");
            }
        }
    }

    /// A device whose memory is a host tensor behind a handle, and which fails when it is told to.
    #[derive(Debug)]
    struct Remote {
        broken: bool,
    }

    impl Remote {
        fn host<'a>(&self, x: &'a Tensor) -> Result<&'a Tensor> {
            if self.broken {
                return Err(Error::Device { device: self.name(), message: "the cable is unplugged".into() });
            }
            Ok(x.storage().handle::<Tensor>().expect("a tensor of this device"))
        }

        fn tensor(self, x: Tensor) -> Tensor {
            Remote::wrap(x, Device::new(Arc::new(self)))
        }

        fn wrap(x: Tensor, device: Device) -> Tensor {
            let (layout, dtype, bytes) = (x.layout().clone(), x.dtype(), x.meta().bytes());
            Tensor::from_storage(StorageRef::from_device(Box::new(x), bytes, device), layout, dtype)
        }
    }

    impl Backend for Remote {
        fn name(&self) -> String {
            "remote".into()
        }
        fn download(&self, x: &Tensor) -> Result<Tensor> {
            self.host(x).cloned()
        }
        fn assemble(&self, shape: &Shape, dtype: DType, parts: &[(Layout, &Tensor)]) -> Result<Tensor> {
            assert_eq!(dtype, DType::I64);
            let mut buffer = HostBuffer::new(shape.elements() * 8);
            for (place, part) in parts {
                let source = self.host(part)?.as_slice::<i64>().expect("contiguous");
                for number in 0..part.elements() {
                    let at = |layout: &Layout| {
                        let mut rest = number as isize;
                        let steps = layout.shape().iter().zip(layout.strides()).rev().map(|(&n, &stride)| {
                            let i = rest % n as isize;
                            rest /= n as isize;
                            i * stride
                        });
                        (layout.offset() as isize + steps.sum::<isize>()) as usize
                    };
                    buffer.as_mut::<i64>()[at(place)] = source[at(part.layout())];
                }
            }
            Ok(Remote::wrap(buffer.into_tensor(shape, dtype), parts[0].1.device().clone()))
        }
        fn upload(&self, _: &Tensor) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn map(&self, _: Map, _: &[&Tensor]) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn reduce(&self, _: Reduce, _: &Tensor, _: &[usize]) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn cumsum(&self, _: &Tensor, _: usize) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn matmul(&self, _: &Tensor, _: &Tensor) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn contiguous(&self, _: &Tensor) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn cast(&self, _: &Tensor, _: DType) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn gather(&self, _: &Tensor, _: usize, _: &Tensor) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn scatter_add(&self, _: &Tensor, _: usize, _: &Tensor, _: &Tensor) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn argsort(&self, _: &Tensor, _: usize, _: bool) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
        fn random(&self, _: Distribution, _: &Shape, _: DType, _: Key) -> Result<Tensor> {
            unreachable!("printing only reads")
        }
    }

    #[test]
    fn a_device_prints_as_the_host_does() {
        for shape in [vec![], vec![2, 3], vec![60], vec![50, 70], vec![9, 8, 30]] {
            let x = range(&shape);
            let remote = Remote { broken: false }.tensor(x.clone());
            assert_eq!(remote.to_string(), x.to_string().replacen("cpu", "remote", 1));
        }
    }

    #[test]
    fn a_device_that_fails_says_so_and_does_not_panic() {
        for shape in [vec![], vec![2, 3], vec![100, 100]] {
            let x = Remote { broken: true }.tensor(range(&shape));
            let header = format!("{x:?}");
            assert_text(&x, &[&header, "(its elements cannot be read: remote: the cable is unplugged)"]);
        }
    }
}
