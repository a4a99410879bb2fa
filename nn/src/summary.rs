//! A model's parameters as a table.

use std::fmt;

use limpid_autograd::format_bytes;
use limpid_tensor::Meta;

use crate::module::Parameters;
use crate::parameter::Role;

/// The parameters of a model with their types and sizes, displayed as a table of at most 80 columns unless a shape is
/// very long; a path that does not fit loses its beginning.
///
/// ```
/// use limpid_nn::{Activation, Init, Linear, Parameters, Summary};
/// let mut layer = Linear::new(&Init::new(0).enter("head"), 64, 2, Activation::Identity);
/// layer.set_frozen("*.bias", true)?;
/// assert_eq!(
///     Summary::of(&layer).to_string(),
///     "\
/// parameter    type        elements  bytes
/// head.weight  f32[2, 64]       128  512 B
/// head.bias    f32[2]             2    8 B  frozen
/// total                         130  520 B
/// to learn                      128  512 B
/// "
/// );
/// # Ok::<(), limpid_nn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Summary {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    path: String,
    meta: Meta,
    role: Role,
    trainable: bool,
}

impl Summary {
    /// The summary of a model, its parameters in order of visit.
    pub fn of(model: &(impl Parameters + ?Sized)) -> Summary {
        let mut rows = Vec::new();
        model.visit(&mut |p| {
            let (path, meta) = (p.path().to_string(), p.meta());
            rows.push(Row { path, meta, role: p.role(), trainable: p.is_trainable() });
        });
        Summary { rows }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |row: &Row| {
            let mark = match row.role {
                Role::Buffer => "buffer",
                Role::Weight if row.trainable => "",
                Role::Weight => "frozen",
            };
            let meta = &row.meta;
            let (elements, bytes) = (meta.shape.elements().to_string(), format_bytes(meta.bytes()));
            [row.path.clone(), meta.to_string(), elements, bytes, mark.into()]
        };
        let sum = |name: &str, rows: &[&Row]| {
            let elements: usize = rows.iter().map(|row| row.meta.shape.elements()).sum();
            let bytes = format_bytes(rows.iter().map(|row| row.meta.bytes()).sum());
            [name.into(), String::new(), elements.to_string(), bytes, String::new()]
        };
        let all: Vec<&Row> = self.rows.iter().collect();
        let trainable: Vec<&Row> = self.rows.iter().filter(|row| row.trainable).collect();
        let mut table = vec![["parameter", "type", "elements", "bytes", ""].map(String::from)];
        table.extend(self.rows.iter().map(line));
        table.push(sum("total", &all));
        if trainable.len() < all.len() {
            table.push(sum("to learn", &trainable));
        }

        let widest = |column: usize| table.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
        let [kind, count, bytes, mark] = [1, 2, 3, 4].map(widest);
        let room = 80usize.saturating_sub(kind + count + bytes + mark + 8).max(12);
        let path = widest(0).min(room);
        for [name, kind_of, count_of, bytes_of, mark] in &table {
            let name = shortened(name, path);
            let text =
                format!("{name:path$}  {kind_of:kind$}  {count_of:>count$}  {bytes_of:>bytes$}  {mark}");
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// The end of `text`, in at most `width` characters.
fn shortened(text: &str, width: usize) -> String {
    let excess = text.chars().count().saturating_sub(width);
    if excess == 0 {
        text.into()
    } else {
        format!("…{}", text.chars().skip(excess + 1).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, BatchNorm1d, Init, Linear, Module, Sequential};

    #[test]
    fn buffers_are_marked_and_lines_stay_within_80_columns() {
        let mut init = Init::new(0);
        for name in
            ["encoder", "a_rather_long_name_for_a_stage", "another_long_name_below_it", "layers", "17"]
        {
            init = init.enter(name);
        }
        let modules: Vec<Box<dyn Module>> = vec![
            Box::new(Linear::new(&init.enter("projection"), 1024, 4096, Activation::Relu)),
            Box::new(BatchNorm1d::new(&init.enter("norm"), 4096)),
        ];
        let model = Sequential::new(modules);
        let text = Summary::of(&model).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let line =
            |end: &str| text.lines().find(|l| l.contains(end)).unwrap_or_else(|| panic!("{end}\n{text}"));
        assert!(line("17.projection.weight  f32[4096, 1024]").starts_with('…'), "{text}");
        assert!(line("running_var").ends_with("buffer"), "{text}");
        assert!(line("num_batches_tracked").contains("i64[]"), "{text}");
        let learned = 1024 * 4096 + 4096 + 2 * 4096;
        assert!(line("to learn").contains(&format!("  {learned}  16.0 MiB")), "{text}");
        assert_eq!(model.weight_count(), learned);
    }
}
