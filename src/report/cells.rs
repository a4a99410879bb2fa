//! A grid of levels as few rectangles.

use std::collections::BTreeMap;

use super::palette::MUTED;
use super::svg::{Element, Path};

/// A block of cells: column, row, width, height, in cells.
pub(super) type Block = (usize, usize, usize, usize);

/// Covers a grid with blocks of one level each: neighbours in a row are joined, then equal runs of
/// consecutive rows. Every cell lies in exactly one block.
pub(super) fn merge<L: Ord + Copy>(
    width: usize,
    height: usize,
    level: impl Fn(usize, usize) -> L,
) -> BTreeMap<L, Vec<Block>> {
    let mut done: BTreeMap<L, Vec<Block>> = BTreeMap::new();
    // The runs of the row above, by their first column.
    let mut open: BTreeMap<usize, (L, Block)> = BTreeMap::new();
    for row in 0..height {
        let mut runs: BTreeMap<usize, (L, Block)> = BTreeMap::new();
        let mut start = 0;
        while start < width {
            let here = level(start, row);
            let length = (start..width).take_while(|&column| level(column, row) == here).count();
            let block = match open.get(&start) {
                Some(&(above, (x, y, w, h))) if above == here && w == length => {
                    open.remove(&start);
                    (x, y, w, h + 1)
                }
                _ => (start, row, length, 1),
            };
            runs.insert(start, (here, block));
            start += length;
        }
        for (level, block) in std::mem::replace(&mut open, runs).into_values() {
            done.entry(level).or_default().push(block);
        }
    }
    for (level, block) in open.into_values() {
        done.entry(level).or_default().push(block);
    }
    done
}

/// The blocks as one path, a cell being one unit wide and high.
pub(super) fn path(blocks: &[Block]) -> Path {
    let mut path = Path::new();
    for &(x, y, w, h) in blocks {
        path.rect(x as f64, y as f64, w as f64, h as f64);
    }
    path
}

/// Diagonal lines over a rectangle of the page, on one raster for the whole figure so that neighbours join.
pub(super) fn hatch(path: &mut Path, x: f64, y: f64, width: f64, height: f64) {
    const SPACING: f64 = 4.0;
    let (right, bottom) = (x + width, y + height);
    let mut sum = ((x + y) / SPACING).ceil() * SPACING;
    while sum < right + bottom {
        let (from, to) = (x.max(sum - bottom), right.min(sum - y));
        if to > from {
            path.move_to(from, sum - from);
            path.line_to(to, sum - to);
        }
        sum += SPACING;
    }
}

/// Hatching as it is drawn everywhere.
pub(super) fn hatched(path: Path) -> Element {
    Element::path(path).stroke(MUTED, 0.8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_covered_once_by_its_own_level() {
        let (width, height) = (23, 17);
        let level = |x: usize, y: usize| (x * x / 90 + y * y / 70 + x * y / 60) % 3;
        let mut cover = vec![Vec::new(); width * height];
        let blocks = merge(width, height, level);
        for (&l, blocks) in &blocks {
            for &(x, y, w, h) in blocks {
                (y..y + h).for_each(|r| (x..x + w).for_each(|c| cover[r * width + c].push(l)));
            }
        }
        for y in 0..height {
            for x in 0..width {
                assert_eq!(cover[y * width + x], [level(x, y)], "cell ({x}, {y})");
            }
        }
        assert!(blocks.values().flatten().count() < width * height / 2);
    }

    #[test]
    fn a_uniform_grid_is_one_block() {
        assert_eq!(merge(50, 40, |_, _| 7), BTreeMap::from([(7, vec![(0, 0, 50, 40)])]));
        assert!(merge(0, 5, |_, _| 0).is_empty());
    }

    #[test]
    fn hatching_stays_inside() {
        let mut path = Path::new();
        hatch(&mut path, 10.0, 20.0, 9.0, 5.0);
        let text = format!("{path:?}");
        let numbers: Vec<f64> =
            text.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|n| n.parse().ok()).collect();
        assert!(numbers.len() >= 8);
        assert!(
            numbers.chunks(2).all(|p| (10.0..=19.0).contains(&p[0]) && (20.0..=25.0).contains(&p[1])),
            "{text}"
        );
    }
}
