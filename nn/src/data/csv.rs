//! Data sets in text files: feature columns, then one column of labels.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use ::csv::{ByteRecord, ReaderBuilder, Writer};
use limpid_tensor::{DType, Tensor, bf16};

use super::Dataset;
use crate::{Column, Error, Place, Result};

/// The name of the label column where there is no header, and in files written here.
const LABEL: &str = "label";

/// What a label is in messages, if it is a number.
const WHOLE: &str = "a whole number from 0 up";

impl Dataset {
    /// Reads rows of numbers separated by commas, the last column being the label.
    ///
    /// The first row is a header if no field of it is a number; else two features are called `x` and `y`, and others
    /// `x0`, `x1` and so on. Features are numbers in decimal or scientific notation, each rounded once to `dtype`.
    /// Labels are either all whole numbers (`1` and `1.0` are the same) or all names, which are not numbers; the
    /// distinct ones in sorted order are the classes 0, 1, …, and [`class_names`](Dataset::class_names) keeps what
    /// each stands for. Blank lines, spaces around fields and a byte order mark are skipped; a field in double
    /// quotes may hold commas.
    ///
    /// ```
    /// use limpid_nn::data::Dataset;
    /// use limpid_tensor::DType;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let path = std::env::temp_dir().join(format!("limpid-read-csv-{}.csv", std::process::id()));
    /// std::fs::write(&path, "height,width,kind\n1.5,2,oak\n0.5,3e-1,elm\n")?;
    /// let trees = Dataset::read_csv(&path, DType::F32)?;
    /// assert_eq!(trees.features().to_vec::<f32>()?, [1.5, 2.0, 0.5, 0.3]);
    /// assert_eq!(trees.labels().to_vec::<i64>()?, [1, 0]);
    /// assert_eq!(trees.feature_names(), ["height", "width"]);
    /// assert_eq!(trees.class_names(), ["elm", "oak"]);
    /// # Ok(std::fs::remove_file(&path)?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the file cannot be read; a row has another number of fields than the first, or fewer than two; a feature
    /// is not a finite number of `dtype`'s range; a label is negative, fractional, empty, or a name among numbers or
    /// the other way round; there are no rows, or only one class; a field is not UTF-8. The message names the file,
    /// the line, the column, what was expected and what was found.
    ///
    /// # Panics
    /// If `dtype` is not a float.
    #[track_caller]
    pub fn read_csv(path: impl AsRef<Path>, dtype: DType) -> Result<Dataset> {
        let table = Table::read(path.as_ref(), dtype, None)?;
        let classes: BTreeSet<&Label> = table.labels.iter().collect();
        let classes: Vec<Label> = classes.into_iter().cloned().collect();
        table.into_dataset(dtype, &classes)
    }

    /// As [`read_csv`](Dataset::read_csv), with the classes that are already known: a file to be judged by a model
    /// that was trained on another one, where label k has to mean the same. It may lack some of the classes.
    ///
    /// ```
    /// use limpid_nn::data::Dataset;
    /// use limpid_tensor::DType;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let path = std::env::temp_dir().join(format!("limpid-read-csv-as-{}.csv", std::process::id()));
    /// std::fs::write(&path, "1.5,2,oak\n")?;
    /// let trees = Dataset::read_csv_as(&path, DType::F32, &["elm", "oak"])?;
    /// assert_eq!(trees.labels().to_vec::<i64>()?, [1]);
    /// let error = Dataset::read_csv_as(&path, DType::F32, &["elm", "ash"]).unwrap_err().to_string();
    /// assert!(error.ends_with(r#"line 1, column 3 (label): expected one of the classes elm, ash, found "oak""#));
    /// # Ok(std::fs::remove_file(&path)?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As `read_csv`, and if a label is not one of `class_names`.
    ///
    /// # Panics
    /// If `dtype` is not a float, or `class_names` could not be those of a data set.
    #[track_caller]
    pub fn read_csv_as(
        path: impl AsRef<Path>,
        dtype: DType,
        class_names: &[impl AsRef<str>],
    ) -> Result<Dataset> {
        let parse = |name: &str| match Label::parse(name) {
            Ok(label) => label,
            Err(expected) => panic!("read_csv_as: {name:?} is no class, expected {expected}"),
        };
        let classes: Vec<Label> = class_names.iter().map(|name| parse(name.as_ref())).collect();
        Table::read(path.as_ref(), dtype, Some(&classes))?.into_dataset(dtype, &classes)
    }

    /// Writes a header, and one row for each sample: its features, and the name of its class.
    ///
    /// Numbers have the fewest digits that read back as the same value of the same dtype. The file appears
    /// complete or not at all: a temporary one beside it is written, synced and renamed. A feature that is not finite
    /// is written as such, and refused when it is read.
    ///
    /// ```
    /// use limpid_nn::data::{Dataset, two_moons};
    /// use limpid_tensor::{DType, rng::Key};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let path = std::env::temp_dir().join(format!("limpid-write-csv-{}.csv", std::process::id()));
    /// let moons = two_moons(50, 0.1, DType::F32, Key::new(4))?;
    /// moons.write_csv(&path)?;
    /// let same = Dataset::read_csv(&path, DType::F32)?;
    /// assert_eq!(same.features().to_vec::<f32>()?, moons.features().to_vec::<f32>()?);
    /// # Ok(std::fs::remove_file(&path)?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_csv(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let io = |source| limpid_tensor::Error::io(path, source);
        let csv_io = |error: ::csv::Error| io(error.into());
        let mut writer = Writer::from_writer(Vec::new());
        writer
            .write_record(self.feature_names().iter().map(String::as_str).chain([LABEL]))
            .map_err(csv_io)?;
        let width = self.feature_names().len();
        let numbers = written(self.features())?;
        for (row, label) in self.labels().to_vec::<i64>()?.into_iter().enumerate() {
            let features = &numbers[row * width..(row + 1) * width];
            let label = &self.class_names()[label as usize];
            writer.write_record(features.iter().chain([label])).map_err(csv_io)?;
        }
        let text = writer.into_inner().map_err(|error| io(error.into_error()))?;
        let temporary = temporary_beside(path);
        let complete = File::create(&temporary)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, path));
        if complete.is_err() {
            // The first failure is the one to report; the file may not even exist.
            let _ = fs::remove_file(&temporary);
        }
        Ok(complete.map_err(io)?)
    }
}

/// A name in the same directory, so that renaming stays within one file system.
fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Every element with the fewest digits that tell it from its neighbours (bf16: as f32, of which it is one).
fn written(x: &Tensor) -> Result<Vec<String>> {
    Ok(match x.dtype() {
        DType::F64 => x.to_vec::<f64>()?.iter().map(|v| format!("{v:?}")).collect(),
        _ => x.cast(DType::F32)?.to_vec::<f32>()?.iter().map(|v| format!("{v:?}")).collect(),
    })
}

/// What a field of the label column says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Label {
    Number(u64),
    Name(String),
}

impl Label {
    /// What a trimmed field says, or what it should have said.
    pub(super) fn parse(field: &str) -> Result<Label, &'static str> {
        /// Beyond 2⁵³ not every whole number is an f64.
        const LARGEST: f64 = 9_007_199_254_740_992.0;
        if field.is_empty() || field.trim() != field {
            return Err("a whole number from 0 up or a name");
        }
        if let Ok(number) = field.parse::<u64>() {
            return Ok(Label::Number(number));
        }
        match field.parse::<f64>() {
            Ok(number) if number.fract() == 0.0 && (0.0..=LARGEST).contains(&number) => {
                Ok(Label::Number(number as u64))
            }
            Ok(_) => Err(WHOLE),
            Err(_) => Ok(Label::Name(field.to_owned())),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Label::Number(number) => write!(f, "{number}"),
            Label::Name(name) => f.write_str(name),
        }
    }
}

/// Whether a trimmed field is meant as a number, `nan` and `inf` included.
pub(super) fn is_number(field: &str) -> bool {
    field.parse::<f64>().is_ok()
}

/// A file's contents, checked field by field.
struct Table {
    names: Vec<String>,
    /// `[N, D]` in row-major order, each an exact value of the dtype it was read as.
    values: Vec<f64>,
    labels: Vec<Label>,
}

impl Table {
    /// Reads a file whose labels are among `known`, or else all numbers or all names.
    #[track_caller]
    fn read(path: &Path, dtype: DType, known: Option<&[Label]>) -> Result<Table> {
        assert!(dtype.is_float(), "features are floats, asked for {dtype}");
        let bytes = fs::read(path).map_err(|source| limpid_tensor::Error::io(path, source))?;
        let mut source =
            Source { path, text: bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes), columns: Vec::new() };
        let records = source.records()?;
        let Some(first) = records.first() else {
            return Err(source.error(None, None, "at least one row of data", "an empty file"));
        };
        if first.len() < 2 {
            let expected = "at least 2 fields (features, then a label) separated by commas";
            let found = format!("1: {}", quoted(source.field(first, 0)?));
            return Err(source.error(Some(first), None, expected, found));
        }
        let width = first.len() - 1;
        let header = (0..=width).map(|column| source.field(first, column)).collect::<Result<Vec<&str>>>()?;
        let has_header = !header.iter().any(|field| is_number(field));
        if has_header && let Some(column) = header.iter().position(|name| name.is_empty()) {
            return Err(source.error(Some(first), Some(column), "the name of a column", quoted("")));
        }
        source.columns = if has_header {
            header.into_iter().map(str::to_owned).collect()
        } else if width == 2 {
            ["x", "y", LABEL].map(str::to_owned).into()
        } else {
            (0..width).map(|column| format!("x{column}")).chain([LABEL.to_owned()]).collect()
        };
        let rows = &records[usize::from(has_header)..];
        if rows.is_empty() {
            return Err(source.error(None, None, "at least one row of data", "only a header"));
        }

        let mut values = Vec::with_capacity(rows.len() * width);
        let mut labels: Vec<Label> = Vec::with_capacity(rows.len());
        for row in rows {
            if row.len() != width + 1 {
                let expected = format!("{} fields as on line {}", width + 1, source.line(first));
                return Err(source.error(Some(row), None, expected, row.len().to_string()));
            }
            for column in 0..width {
                let field = source.field(row, column)?;
                let value = parse_feature(field, dtype)
                    .map_err(|expected| source.error(Some(row), Some(column), expected, quoted(field)))?;
                values.push(value);
            }
            let field = source.field(row, width)?;
            let wrong = |expected: String| source.error(Some(row), Some(width), expected, quoted(field));
            let label = Label::parse(field).map_err(|expected| wrong(expected.to_owned()))?;
            match (known, labels.first(), &label) {
                (Some(known), _, label) if !known.contains(label) => {
                    let known: Vec<String> = known.iter().map(Label::to_string).collect();
                    return Err(wrong(format!("one of the classes {}", known.join(", "))));
                }
                (None, Some(Label::Number(_)), Label::Name(_)) => {
                    return Err(wrong(format!("{WHOLE}, as on line {}", source.line(&rows[0]))));
                }
                (None, Some(Label::Name(_)), Label::Number(_)) => {
                    return Err(wrong(format!("a name, as on line {}", source.line(&rows[0]))));
                }
                _ => labels.push(label),
            }
        }
        if known.is_none() && labels.iter().all(|label| *label == labels[0]) {
            let found = format!("only {}", quoted(&labels[0].to_string()));
            return Err(source.error(None, Some(width), "at least two classes", found));
        }
        source.columns.truncate(width);
        Ok(Table { names: source.columns, values, labels })
    }

    /// The data set in which label k stands for the k-th of the classes, all labels being among them.
    fn into_dataset(self, dtype: DType, classes: &[Label]) -> Result<Dataset> {
        let numbers: BTreeMap<&Label, i64> = classes.iter().zip(0..).collect();
        let labels: Vec<i64> = self.labels.iter().map(|label| numbers[label]).collect();
        let (samples, width) = (labels.len(), self.names.len());
        Dataset::new(
            Tensor::from_f64(&self.values, [samples, width], dtype),
            Tensor::from_vec(labels, [samples]),
            &self.names,
            &classes.iter().map(Label::to_string).collect::<Vec<_>>(),
        )
    }
}

/// The value of a feature, rounded once to the dtype (bf16: to f32, and then when the tensor is made); or what the
/// field should have held.
fn parse_feature(field: &str, dtype: DType) -> Result<f64, String> {
    let wide: f64 = field.parse().map_err(|_| "a number".to_owned())?;
    if !wide.is_finite() {
        return Err("a finite number".to_owned());
    }
    let value = match dtype {
        DType::F64 => wide,
        _ => field.parse::<f32>().map_or(wide, f64::from),
    };
    let fits = if dtype == DType::BF16 { bf16::from_f64(value).is_finite() } else { value.is_finite() };
    if fits { Ok(value) } else { Err(format!("a number in the range of {dtype}")) }
}

/// A file's text, and the names of its columns once they are known: what it takes to say where something is.
struct Source<'a> {
    path: &'a Path,
    text: &'a [u8],
    columns: Vec<String>,
}

impl Source<'_> {
    /// Every row but the blank ones.
    fn records(&self) -> Result<Vec<ByteRecord>> {
        let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(self.text);
        let mut records = Vec::new();
        for record in reader.byte_records() {
            let record = record.map_err(|error| limpid_tensor::Error::io(self.path, error.into()))?;
            if record.len() > 1 || record.iter().any(|field| !field.trim_ascii().is_empty()) {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// A field without the spaces around it.
    fn field<'r>(&self, record: &'r ByteRecord, column: usize) -> Result<&'r str> {
        std::str::from_utf8(&record[column]).map(str::trim).map_err(|error| {
            let byte = record[column][error.valid_up_to()];
            self.error(Some(record), Some(column), "text in UTF-8", format!("the byte 0x{byte:02x}"))
        })
    }

    /// The line on which a record starts. The reader's own count stands before the blank lines that it skipped.
    fn line(&self, record: &ByteRecord) -> usize {
        let read_from = record.position().map_or(0, |position| position.byte() as usize);
        let blank = self.text[read_from..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let before = &self.text[..read_from + blank];
        let ends =
            |(at, &byte): (usize, &u8)| byte == b'\n' || byte == b'\r' && before.get(at + 1) != Some(&b'\n');
        1 + before.iter().enumerate().filter(|&end| ends(end)).count()
    }

    fn error(
        &self,
        record: Option<&ByteRecord>,
        column: Option<usize>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        let column = column.map(|at| Column { number: at + 1, name: self.columns.get(at).cloned() });
        let line = record.map(|record| self.line(record));
        let place = Place { path: self.path.to_path_buf(), line, column };
        Error::Table { place, expected: expected.into(), found: found.into() }
    }
}

/// A field as a message shows it: in quotes, on one line, and not too long.
fn quoted(field: &str) -> String {
    const LONGEST: usize = 40;
    if field.is_empty() {
        return "an empty field".into();
    }
    match field.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &field[..end]),
        None => format!("{field:?}"),
    }
}

#[cfg(test)]
mod tests {
    use limpid_tensor::rng::Key;

    use super::*;
    use crate::data::two_moons;

    /// A file of its own for each test, gone when the test ends.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, text: impl AsRef<[u8]>) -> Scratch {
            let path = std::env::temp_dir().join(format!("limpid-csv-{}-{name}.csv", std::process::id()));
            fs::write(&path, text).unwrap();
            Scratch(path)
        }

        fn read(&self) -> Result<Dataset> {
            Dataset::read_csv(&self.0, DType::F32)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Reading this text fails with this message, up to the path in front of it.
    #[track_caller]
    fn fails(name: &str, text: impl AsRef<[u8]>, message: &str) {
        let file = Scratch::new(name, text);
        let found = file.read().unwrap_err().to_string();
        assert_eq!(found, format!("{}: {message}", file.0.display()));
    }

    fn rows(data: &Dataset) -> (Vec<f64>, Vec<i64>) {
        (data.features().to_f64_vec().unwrap(), data.labels().to_vec().unwrap())
    }

    #[test]
    fn a_header_names_the_features() {
        let data = Scratch::new("header", "left, right ,kind\n1,2,0\n3,4,1\n").read().unwrap();
        assert_eq!(data.feature_names(), ["left", "right"]);
        assert_eq!(rows(&data), (vec![1.0, 2.0, 3.0, 4.0], vec![0, 1]));
    }

    #[test]
    fn without_a_header_features_have_names_all_the_same() {
        let names = |text| Scratch::new("bare", text).read().unwrap().feature_names().to_vec();
        assert_eq!(names("1,2,0\n3,4,1\n"), ["x", "y"]);
        assert_eq!(names("1,0\n3,1\n"), ["x0"]);
        assert_eq!(names("1,2,3,0\n3,4,5,1\n"), ["x0", "x1", "x2"]);
    }

    #[test]
    fn blank_lines_spaces_line_ends_and_a_byte_order_mark_do_not_matter() {
        let plain = Scratch::new("plain", "x,y,label\n1,2,0\n3,4,1\n").read().unwrap();
        for (name, text) in [
            ("blank", "\n\nx,y,label\n\n1,2,0\n   \n3,4,1\n\n"),
            ("spaces", "x,y,label\n 1 ,2, 0\n3,4\t,1"),
            ("crlf", "x,y,label\r\n1,2,0\r\n\r\n3,4,1\r\n"),
            ("bom", "\u{feff}x,y,label\n1,2,0\n3,4,1\n"),
            ("quotes", "\"x\",y,label\n\"1\",2,0\n3,4,\"1\"\n"),
            ("exponents", "x,y,label\n1e0,+2.0,0.0\n.3e1,4.,1.000000e+00\n"),
        ] {
            let data = Scratch::new(name, text).read().unwrap();
            assert_eq!(rows(&data), rows(&plain), "{name}");
            assert_eq!(data.feature_names(), plain.feature_names(), "{name}");
            assert_eq!(data.class_names(), ["0", "1"], "{name}");
        }
    }

    #[test]
    fn classes_are_the_distinct_labels_in_order() {
        let data = Scratch::new("numbers", "0,10\n0,9\n0,10\n0,100\n").read().unwrap();
        assert_eq!(data.class_names(), ["9", "10", "100"]);
        assert_eq!(rows(&data).1, [1, 0, 1, 2]);
        let data = Scratch::new("names", "0,versicolor\n0,\"a, b\"\n0,setosa\n").read().unwrap();
        assert_eq!(data.class_names(), ["a, b", "setosa", "versicolor"]);
        assert_eq!(rows(&data).1, [2, 0, 1]);
    }

    #[test]
    fn known_classes_keep_their_numbers() {
        let file = Scratch::new("known", "x,label\n1,no\n2,no\n");
        let data = Dataset::read_csv_as(&file.0, DType::F64, &["yes", "no", "maybe"]).unwrap();
        assert_eq!((rows(&data).1, data.classes()), (vec![1, 1], 3));
        let error = Dataset::read_csv_as(&file.0, DType::F64, &["0", "1"]).unwrap_err().to_string();
        let path = file.0.display();
        assert_eq!(
            error,
            format!("{path}: line 2, column 2 (label): expected one of the classes 0, 1, found \"no\"")
        );
    }

    #[test]
    fn numbers_are_rounded_once_to_the_dtype() {
        // Just above the midpoint of two f32 numbers, by less than f64 can see: rounding by way of f64 loses it.
        let above = "1.00000005960464477539062500000001";
        let file = Scratch::new("once", format!("{above},0\n0.1,1\n"));
        assert_eq!(file.read().unwrap().features().to_vec::<f32>().unwrap(), [1.0 + f32::EPSILON, 0.1]);
        let wide = Dataset::read_csv(&file.0, DType::F64).unwrap();
        assert_eq!(wide.features().to_vec::<f64>().unwrap(), [above.parse().unwrap(), 0.1]);
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let file = Scratch::new("round-trip", "");
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let moons = two_moons(301, 0.3, dtype, Key::new(8)).unwrap();
            moons.write_csv(&file.0).unwrap();
            let read = Dataset::read_csv(&file.0, dtype).unwrap();
            assert_eq!(rows(&read), rows(&moons), "{dtype}");
            assert_eq!(read.feature_names(), moons.feature_names());
            assert_eq!(read.class_names(), moons.class_names());
        }
        let extremes = [f64::MIN_POSITIVE, f64::MAX, -0.0, 5e-324, 1.0 / 3.0, 1e21, -1e-7, 123456789.0];
        let features = Tensor::from_slice(&extremes, [4, 2]);
        let labels = Tensor::from_vec(vec![0i64, 1, 2, 1], [4]);
        let data = Dataset::new(features, labels, &["a, b", "c\"d"], &["e\nf", "g h", "i,j"]).unwrap();
        data.write_csv(&file.0).unwrap();
        let read = Dataset::read_csv(&file.0, DType::F64).unwrap();
        let bits = |data: &Dataset| rows(data).0.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!((bits(&read), rows(&read).1), (bits(&data), vec![0, 1, 2, 1]));
        assert_eq!((read.feature_names(), read.class_names()), (data.feature_names(), data.class_names()));
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing_behind() {
        let moons = two_moons(10, 0.1, DType::F32, Key::new(0)).unwrap();
        let directory = std::env::temp_dir().join(format!("limpid-csv-{}-directory", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let inside = directory.join("taken");
        fs::create_dir(&inside).unwrap();
        let error = moons.write_csv(&inside).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", inside.display())), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        let missing = directory.join("missing").join("moons.csv");
        assert_eq!(
            moons.write_csv(&missing).unwrap_err().to_string(),
            format!("{}: No such file or directory (os error 2)", missing.display())
        );
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read() {
        let path = std::env::temp_dir().join("limpid-csv-there-is-no-such-file.csv");
        assert_eq!(
            Dataset::read_csv(&path, DType::F32).unwrap_err().to_string(),
            format!("{}: No such file or directory (os error 2)", path.display())
        );
    }

    #[test]
    fn no_rows() {
        fails("empty", "", "expected at least one row of data, found an empty file");
        fails("blank-only", "\n  \n", "expected at least one row of data, found an empty file");
        fails("header-only", "x,y,label\n", "expected at least one row of data, found only a header");
    }

    #[test]
    fn wrong_number_of_fields() {
        fails("short", "x,y,label\n1,2,0\n\n1,2\n", "line 4: expected 3 fields as on line 1, found 2");
        fails("long", "1,2,0\n1,2,0,7\n", "line 2: expected 3 fields as on line 1, found 4");
        fails(
            "semicolons",
            "1;2;0\n3;4;1\n",
            "line 1: expected at least 2 fields (features, then a label) separated by commas, found 1: \"1;2;0\"",
        );
    }

    #[test]
    fn lines_are_counted_as_editors_do() {
        let message = "expected a number, found \"?\"";
        for (name, text, line) in [
            ("lf", "\n\nx,y,label\n1,2,0\n\n\n1,?,1\n", 7),
            ("crlf-lines", "x,y,label\r\n\r\n1,2,0\r\n\r\n1,?,1\r\n", 5),
            ("cr", "x,y,label\r1,2,0\r\r1,?,1\r", 4),
            ("bom-lines", "\u{feff}\nx,y,label\n1,?,0\n", 3),
            ("quoted-lines", "x,y,label\n1,2,\"a\nb\"\n1,?,c\n", 4),
            ("spaces-lines", "x,y,label\n  \n1,?,0\n", 3),
        ] {
            fails(name, text, &format!("line {line}, column 2 (y): {message}"));
        }
    }

    #[test]
    fn a_feature_that_is_no_number() {
        fails(
            "word",
            "x,y,label\n1,2,0\n1,abc,1\n",
            "line 3, column 2 (y): expected a number, found \"abc\"",
        );
        fails("missing", "a,b,c\n,2,0\n", "line 2, column 1 (a): expected a number, found an empty field");
        fails("first-row", "oops,2,0\n3,4,1\n", "line 1, column 1 (x): expected a number, found \"oops\"");
        fails(
            "long-field",
            format!("1,2,0\n1,{},1\n", "é\n".repeat(30))
                .replace("\n1,é", "\n1,\"é")
                .replace("\n,1", "\n\",1"),
            &format!("line 2, column 2 (y): expected a number, found \"{}\"…", "é\\n".repeat(20)),
        );
    }

    #[test]
    fn a_feature_that_is_not_finite() {
        for value in ["NaN", "inf", "-Infinity", "1e999"] {
            fails(
                "not-finite",
                format!("x,y,label\n1,{value},0\n"),
                &format!("line 2, column 2 (y): expected a finite number, found {value:?}"),
            );
        }
        fails("nan-first", "nan,2,0\n", "line 1, column 1 (x): expected a finite number, found \"nan\"");
    }

    #[test]
    fn a_feature_beyond_the_dtype() {
        let file = Scratch::new("range", "1e39,0\n3.4e38,1\n");
        let path = file.0.display();
        assert_eq!(
            file.read().unwrap_err().to_string(),
            format!("{path}: line 1, column 1 (x0): expected a number in the range of f32, found \"1e39\"")
        );
        let values = Dataset::read_csv(&file.0, DType::F64).unwrap().features().to_vec::<f64>().unwrap();
        assert_eq!(values, [1e39, 3.4e38]);
        let file = Scratch::new("bf16-range", "1,0\n3.4e38,1\n");
        assert_eq!(
            Dataset::read_csv(&file.0, DType::BF16).unwrap_err().to_string(),
            format!(
                "{}: line 2, column 1 (x0): expected a number in the range of bf16, found \"3.4e38\"",
                file.0.display()
            )
        );
    }

    #[test]
    fn a_label_that_is_none() {
        for label in ["-1", "0.5", "nan", "1e300"] {
            fails(
                "label",
                format!("x,y,kind\n1,2,0\n1,2,{label}\n"),
                &format!("line 3, column 3 (kind): expected a whole number from 0 up, found {label:?}"),
            );
        }
        fails(
            "empty-label",
            "1,2,0\n1,2,\n",
            "line 2, column 3 (label): expected a whole number from 0 up or a name, found an empty field",
        );
        fails(
            "name-among-numbers",
            "x,y,label\n1,2,0\n1,2,one\n",
            "line 3, column 3 (label): expected a whole number from 0 up, as on line 2, found \"one\"",
        );
        fails(
            "number-among-names",
            "1,2,zero\n1,2,1\n",
            "line 2, column 3 (label): expected a name, as on line 1, found \"1\"",
        );
    }

    #[test]
    fn only_one_class() {
        fails(
            "one-class",
            "x,y,kind\n1,2,cat\n3,4,cat\n",
            "column 3 (kind): expected at least two classes, found only \"cat\"",
        );
        fails("one-row", "1,2,0\n", "column 3 (label): expected at least two classes, found only \"0\"");
    }

    #[test]
    fn a_column_without_a_name() {
        fails(
            "nameless",
            ",x,label\n0,1.5,0\n1,2.5,1\n",
            "line 1, column 1: expected the name of a column, found an empty field",
        );
    }

    #[test]
    fn text_that_is_not_utf8() {
        fails(
            "latin-1",
            b"x,y,kind\n1,2,caf\xe9\n",
            "line 2, column 3 (kind): expected text in UTF-8, found the byte 0xe9",
        );
        fails(
            "utf-16",
            b"x,\xff,label\n1,2,0\n",
            "line 1, column 2: expected text in UTF-8, found the byte 0xff",
        );
    }
}
