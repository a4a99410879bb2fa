//! Connections between streams: `connection.cu`.
//!
//! The vocabulary of a backend has no words for them yet, so that only tests launch them.

use crate::module::Family;

pub(crate) static CONNECTION: Family =
    Family { name: "connection.cu", text: include_str!("../../kernels/connection.cu") };

#[cfg(test)]
mod launch {
    use bytemuck::{Pod, Zeroable};
    use limpid_tensor::{DType, Result, Tensor};

    use super::CONNECTION;
    use crate::device::{Cuda, address_of};
    use crate::launch::{Arguments, Grid};
    use crate::walk::{Divisor, MAX_WALK};

    /// The most blocks that one launch computes again; `MOST_BLOCKS` of `connection.cu`.
    const MOST_BLOCKS: usize = 8;
    /// Tokens that a block of `stream` goes through; `PASSED` of `connection.cu`.
    const PASSED: usize = 128;
    /// Blocks that are enough for a card, in splitting sums: a constant, so that the same operands give the same bits.
    const ENOUGH_BLOCKS: usize = 512;
    /// The fewest numbers and tokens that are a part of their own. A part of numbers begins at whole runs.
    const SMALLEST_PART: [usize; 2] = [1024, 256];

    /// `Streams` of `connection.cu`.
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Streams {
        tokens: i64,
        channels: i64,
        packs: Divisor,
        n: u32,
        vector: u32,
        padding: u32,
    }

    /// `Projection` of `connection.cu`.
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Projection {
        tokens: i64,
        k: i64,
        m: u32,
        parts: u32,
        part: i64,
        vector: u32,
        vector_phi: u32,
    }

    /// `Blocks` of `connection.cu`.
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Blocks {
        f: [u64; MOST_BLOCKS],
        mix: [u64; MOST_BLOCKS],
        write: [u64; MOST_BLOCKS],
        y: [u64; MOST_BLOCKS],
        count: u32,
        padding: u32,
    }

    /// What a block has left behind: F, A and b.
    #[derive(Clone)]
    pub(super) struct Left {
        pub f: Tensor,
        pub mix: Tensor,
        pub write: Tensor,
    }

    /// The cotangents of what `write` read.
    pub(super) struct WriteCotangents {
        pub f: Tensor,
        pub mix: Tensor,
        pub write: Tensor,
    }

    /// The sizes of streams X `[tokens, n, C]`, and their dtype.
    #[derive(Clone, Copy)]
    pub(super) struct Sizes {
        tokens: usize,
        n: usize,
        channels: usize,
        dtype: DType,
    }

    /// Whether runs of `elements` of rows of `row` elements begin at multiples of their size in all tensors.
    fn aligned(elements: usize, row: usize, x: &[&Tensor]) -> bool {
        let whole = |x: &&Tensor| address_of(x).is_multiple_of((elements * x.dtype().size()) as u64);
        row.is_multiple_of(elements) && x.iter().all(whole)
    }

    /// Into how many parts, and how large, a sum over `size` is split, where `blocks` would compute it as one.
    fn split(size: usize, blocks: usize, smallest: usize) -> (usize, usize) {
        let parts = ENOUGH_BLOCKS.div_ceil(blocks.max(1)).min(size.div_ceil(smallest)).max(1);
        let part = size.div_ceil(parts).next_multiple_of(smallest);
        (size.div_ceil(part).max(1), part)
    }

    impl Sizes {
        pub(super) fn of(x: &Tensor) -> Sizes {
            let &[tokens, n, channels] = &x.shape()[..] else {
                panic!("streams: expected [tokens, n, C], found {}", x.meta())
            };
            Sizes { tokens, n, channels, dtype: x.dtype() }
        }

        /// Of coefficients, sums and products.
        fn wide(&self) -> DType {
            if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
        }

        fn k(&self) -> usize {
            self.n * self.channels
        }

        /// How the streams of these tensors lie.
        fn streams(&self, cuda: &Cuda, x: &[&Tensor]) -> Result<Streams> {
            let pack = 16 / self.dtype.size();
            let packs = self.channels.div_ceil(pack).max(1);
            if self.tokens * packs > MAX_WALK {
                let message = format!(
                    "streams of {} tokens and {} channels are more than 2³¹ packs",
                    self.tokens, self.channels
                );
                return Err(cuda.error(message));
            }
            Ok(Streams {
                tokens: self.tokens as i64,
                channels: self.channels as i64,
                packs: Divisor::new(packs),
                n: self.n as u32,
                vector: u32::from(aligned(pack, self.channels, x)),
                padding: 0,
            })
        }

        /// The kernel of this name for so many streams.
        fn kernel(&self, name: &str) -> String {
            match self.n {
                2 | 4 | 8 => format!("connection_{name}_{}_{}", self.n, self.dtype),
                _ => format!("connection_{name}_any_{}", self.dtype),
            }
        }

        /// A grid with a thread for each pack of a stream.
        fn by_packs(&self, cuda: &Cuda, streams: &Streams) -> Grid {
            let packs = self.channels.div_ceil(16 / self.dtype.size()) * streams.tokens as usize;
            some(packs, Grid::covering(packs, 256, cuda.most_blocks()))
        }

        /// A grid with a warp for each token.
        fn by_tokens(&self, cuda: &Cuda) -> Grid {
            some(self.tokens, Grid::covering(32 * self.tokens, 128, cuda.most_blocks()))
        }

        fn projection(&self, m: usize) -> Projection {
            Projection {
                tokens: self.tokens as i64,
                k: self.k() as i64,
                m: m as u32,
                parts: 1,
                ..Zeroable::zeroed()
            }
        }
    }

    /// The grid, or none where there are no items.
    fn some(items: usize, grid: Grid) -> Grid {
        if items == 0 { Grid::new(0, grid.threads) } else { grid }
    }

    /// `a·X`: X `[tokens, n, C]`, a `[tokens, n]` → `[tokens, C]`.
    pub(super) fn read(cuda: &'static Cuda, x: &Tensor, a: &Tensor) -> Result<Tensor> {
        let sizes = Sizes::of(x);
        let mut y = cuda.empty([sizes.tokens, sizes.channels], sizes.dtype)?;
        let streams = sizes.streams(cuda, &[x, &y])?;
        let mut arguments = Arguments::default();
        arguments.output(&mut y).input(x).input(a).value(streams);
        cuda.launch(&CONNECTION, &sizes.kernel("read"), sizes.by_packs(cuda, &streams), &mut arguments)?;
        Ok(y)
    }

    /// `A·X + bᵀ ⊗ F`: X `[tokens, n, C]`, F `[tokens, C]`, A `[tokens, n, n]`, b `[tokens, n]` → as X.
    pub(super) fn write(cuda: &'static Cuda, x: &Tensor, left: &Left) -> Result<Tensor> {
        let sizes = Sizes::of(x);
        let mut y = cuda.empty(x.shape(), sizes.dtype)?;
        let streams = sizes.streams(cuda, &[x, &left.f, &y])?;
        let mut arguments = Arguments::default();
        arguments.output(&mut y).input(x).input(&left.f).input(&left.mix).input(&left.write).value(streams);
        cuda.launch(&CONNECTION, &sizes.kernel("write"), sizes.by_packs(cuda, &streams), &mut arguments)?;
        Ok(y)
    }

    /// What [`write`] would give behind each of the blocks, in one pass where n is 2, 4 or 8.
    pub(super) fn recompute(cuda: &'static Cuda, x: &Tensor, left: &[Left]) -> Result<Vec<Tensor>> {
        let sizes = Sizes::of(x);
        let mut all: Vec<Tensor> = Vec::new();
        if !matches!(sizes.n, 2 | 4 | 8) {
            for left in left {
                all.push(write(cuda, all.last().unwrap_or(x), left)?);
            }
            return Ok(all);
        }
        for left in left.chunks(MOST_BLOCKS) {
            let from = all.last().unwrap_or(x).clone();
            let y =
                left.iter().map(|_| cuda.empty(x.shape(), sizes.dtype)).collect::<Result<Vec<Tensor>>>()?;
            let mut blocks = Blocks { count: left.len() as u32, ..Blocks::zeroed() };
            for (l, (left, y)) in left.iter().zip(&y).enumerate() {
                blocks.f[l] = address_of(&left.f);
                blocks.mix[l] = address_of(&left.mix);
                blocks.write[l] = address_of(&left.write);
                blocks.y[l] = address_of(y);
            }
            let operands: Vec<&Tensor> = left.iter().map(|left| &left.f).chain(&y).chain([&from]).collect();
            let streams = sizes.streams(cuda, &operands)?;
            let mut arguments = Arguments::default();
            arguments.input(&from).value(blocks).value(streams);
            let grid = sizes.by_packs(cuda, &streams);
            cuda.launch(&CONNECTION, &sizes.kernel("recompute"), grid, &mut arguments)?;
            all.extend(y);
        }
        Ok(all)
    }

    /// The cotangents of F, A and b, from that of what [`write`] gave.
    pub(super) fn write_backward(
        cuda: &'static Cuda,
        g: &Tensor,
        x: &Tensor,
        left: &Left,
    ) -> Result<WriteCotangents> {
        let sizes @ Sizes { tokens, n, channels, dtype } = Sizes::of(x);
        let mut f = cuda.empty([tokens, channels], dtype)?;
        let mut mix = cuda.empty([tokens, n, n], sizes.wide())?;
        let mut write = cuda.empty([tokens, n], sizes.wide())?;
        let streams = sizes.streams(cuda, &[g, x, &left.f, &f])?;
        let mut arguments = Arguments::default();
        arguments.output(&mut f).output(&mut mix).output(&mut write);
        arguments.input(g).input(x).input(&left.f).input(&left.write).value(streams);
        cuda.launch(&CONNECTION, &sizes.kernel("write_backward"), sizes.by_tokens(cuda), &mut arguments)?;
        Ok(WriteCotangents { f, mix, write })
    }

    /// The cotangent of a, from that of what [`read`] gave.
    pub(super) fn read_backward(cuda: &'static Cuda, h: &Tensor, x: &Tensor) -> Result<Tensor> {
        let sizes = Sizes::of(x);
        let mut a = cuda.empty([sizes.tokens, sizes.n], sizes.wide())?;
        let streams = sizes.streams(cuda, &[h, x])?;
        let mut arguments = Arguments::default();
        arguments.output(&mut a).input(h).input(x).value(streams);
        cuda.launch(&CONNECTION, &sizes.kernel("read_backward"), sizes.by_tokens(cuda), &mut arguments)?;
        Ok(a)
    }

    /// v·φ/r and r = √(mean(v²) + ε): X `[tokens, n, C]` as v `[tokens, nC]`, φ `[nC, m]` → `[tokens, m]` and `[tokens]`.
    pub(super) fn project(cuda: &'static Cuda, x: &Tensor, phi: &Tensor, eps: f64) -> Result<[Tensor; 2]> {
        let sizes = Sizes::of(x);
        let (m, wide, size) = (phi.shape()[1], sizes.wide(), sizes.wide().size());
        // Columns of a block, and tokens of its eight warps.
        let few = if wide == DType::F64 { 2 } else { 1 };
        let (columns, together) = match m {
            0..=8 => (8, 64 / few),
            9..=24 => (24, 32 / few),
            _ => (40, 16 / few),
        };
        let (along, across) = (sizes.tokens.div_ceil(together), m.div_ceil(columns));
        let (parts, part) = split(sizes.k(), along * across, SMALLEST_PART[0]);
        let run = 16 / size;
        let projection = Projection {
            parts: parts as u32,
            part: part as i64,
            vector: u32::from(aligned(run, sizes.k(), &[x])),
            vector_phi: u32::from(aligned(run, m, &[phi])),
            ..sizes.projection(m)
        };
        let partial = cuda.scratch(parts * sizes.tokens * (m + 1) * size)?;
        let mut arguments = Arguments::default();
        arguments.scratch(&partial).input(x).input(phi).value(projection);
        let grid = Grid { blocks: [along as u32, across as u32, parts as u32], threads: 256, shared: 0 };
        cuda.launch(
            &CONNECTION,
            &format!("connection_project_{columns}_{}", sizes.dtype),
            grid,
            &mut arguments,
        )?;
        let (mut projected, mut r) =
            (cuda.empty([sizes.tokens, m], wide)?, cuda.empty([sizes.tokens], wide)?);
        let mut arguments = Arguments::default();
        arguments.output(&mut projected).output(&mut r).scratch(&partial).value(eps).value(projection);
        let grid = some(sizes.tokens, Grid::covering(sizes.tokens * m, 256, cuda.most_blocks()));
        cuda.launch(&CONNECTION, &format!("connection_normalise_{wide}"), grid, &mut arguments)?;
        Ok([projected, r])
    }

    /// Where a stream's cotangent comes from.
    pub(super) struct Sources<'a> {
        /// That of what was written, and A.
        pub written: [&'a Tensor; 2],
        /// That of what was read, and a.
        pub read: [&'a Tensor; 2],
        /// That of what was projected, and what was, and r.
        pub projected: [&'a Tensor; 3],
    }

    /// The cotangents of X, gathered from its three uses, and of φ.
    pub(super) fn stream_backward(
        cuda: &'static Cuda,
        x: &Tensor,
        phi: &Tensor,
        sources: &Sources<'_>,
    ) -> Result<[Tensor; 2]> {
        let sizes = Sizes::of(x);
        let (m, wide) = (phi.shape()[1], sizes.wide());
        let [given, projected, r] = sources.projected;
        let (mut q, mut scale) = (cuda.empty([sizes.tokens, m], wide)?, cuda.empty([sizes.tokens], wide)?);
        let mut arguments = Arguments::default();
        arguments
            .output(&mut q)
            .output(&mut scale)
            .input(given)
            .input(projected)
            .input(r)
            .value(sizes.projection(m));
        let grid = some(sizes.tokens, Grid::covering(sizes.tokens, 256, cuda.most_blocks()));
        cuda.launch(&CONNECTION, &format!("connection_scale_{wide}"), grid, &mut arguments)?;

        let ([g, mix], [h, a]) = (sources.written, sources.read);
        let mut dx = cuda.empty(x.shape(), sizes.dtype)?;
        let of_thread = channels_of_thread(wide);
        let pairs = aligned(of_thread, sizes.channels, &[&dx, g, h, x]);
        let mut arguments = Arguments::default();
        arguments
            .output(&mut dx)
            .input(g)
            .input(h)
            .input(x)
            .input(a)
            .input(mix)
            .input(phi)
            .input(&q)
            .input(&scale);
        arguments.value(sizes.streams(cuda, &[])?).value(u32::from(pairs));
        let grid = match sizes.n {
            2 | 4 | 8 => Grid {
                blocks: [
                    sizes.channels.div_ceil(32 * of_thread) as u32,
                    sizes.tokens.div_ceil(PASSED) as u32,
                    1,
                ],
                threads: 32 * sizes.n as u32,
                shared: 0,
            },
            _ => some(x.elements(), Grid::covering(x.elements(), 256, cuda.most_blocks())),
        };
        cuda.launch(&CONNECTION, &sizes.kernel("stream"), grid, &mut arguments)?;
        Ok([dx, phi_backward(cuda, x, &q)?])
    }

    /// The sum of v ⊗ q over tokens: `[nC, m]`.
    fn phi_backward(cuda: &'static Cuda, x: &Tensor, q: &Tensor) -> Result<Tensor> {
        let sizes = Sizes::of(x);
        let (m, wide) = (q.shape()[1], sizes.wide());
        let columns = match m {
            0..=8 => 8,
            9..=24 => 24,
            _ => 40,
        };
        let of_thread = channels_of_thread(wide);
        let (along, across) = (sizes.k().div_ceil(128 * of_thread), m.div_ceil(columns));
        let (parts, part) = split(sizes.tokens, along * across, SMALLEST_PART[1]);
        let projection = Projection {
            parts: parts as u32,
            part: part as i64,
            vector: u32::from(aligned(of_thread, sizes.k(), &[x])),
            ..sizes.projection(m)
        };
        let partial = cuda.scratch(parts * sizes.k() * m * wide.size())?;
        let mut arguments = Arguments::default();
        arguments.scratch(&partial).input(x).input(q).value(projection);
        let grid = Grid { blocks: [along as u32, parts as u32, across as u32], threads: 128, shared: 0 };
        cuda.launch(
            &CONNECTION,
            &format!("connection_phi_backward_{columns}_{}", sizes.dtype),
            grid,
            &mut arguments,
        )?;
        let mut dphi = cuda.empty([sizes.k(), m], wide)?;
        let mut arguments = Arguments::default();
        arguments.output(&mut dphi).scratch(&partial).value((sizes.k() * m) as i64).value(parts as u32);
        let grid = some(sizes.k() * m, Grid::covering(sizes.k() * m, 256, cuda.most_blocks()));
        cuda.launch(&CONNECTION, &format!("connection_sum_{wide}"), grid, &mut arguments)?;
        Ok(dphi)
    }

    /// As `connection.cu` has it.
    fn channels_of_thread(wide: DType) -> usize {
        if wide == DType::F64 { 1 } else { 2 }
    }
}

#[cfg(test)]
mod tests {
    use limpid_tensor::rng::{Distribution, Key};
    use limpid_tensor::{DType, Result, Tensor};

    use super::launch::{self, Left, Sizes, Sources};
    use crate::ops::rows::tests::Emulated;

    /// Tokens, streams and channels: packs and no packs, one warp's and more, more tokens than a block has.
    const SIZES: [[usize; 3]; 10] = [
        [3, 1, 5],
        [1, 2, 8],
        [33, 2, 24],
        [2, 3, 16],
        [1, 4, 7],
        [70, 4, 8],
        [3, 4, 300],
        [2, 4, 512],
        [130, 8, 2],
        [2, 8, 40],
    ];

    /// Normal numbers, rounded to the dtype: on the device, and as f64.
    struct Numbers {
        placed: Tensor,
        values: Vec<f64>,
    }

    /// Where a test runs, and on what.
    struct Case<'a> {
        emulated: &'a Emulated,
        /// Tokens, streams and channels.
        sizes: [usize; 3],
        dtype: DType,
        /// Of coefficients.
        wide: DType,
        /// Whether tensors begin at multiples of 16 bytes.
        aligned: bool,
    }

    impl Case<'_> {
        fn numbers<const R: usize>(&self, shape: [usize; R], dtype: DType, seed: u64) -> Numbers {
            let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
            let x = Tensor::random(normal, shape, dtype, Key::new(seed)).unwrap();
            let placed =
                if self.aligned { self.emulated.place(&x) } else { self.emulated.place_unaligned(&x) };
            Numbers { placed, values: x.to_f64_vec().unwrap() }
        }

        #[track_caller]
        fn assert_near(&self, found: Result<Tensor>, expected: &[f64], what: &str) {
            let what = format!("{what}, {} {:?}, aligned {}", self.dtype, self.sizes, self.aligned);
            let tolerance = match found.as_ref().map(Tensor::dtype) {
                Ok(DType::F64) => 1e-13,
                Ok(DType::F32) => 2e-6,
                _ => 4e-3,
            };
            let found = self.emulated.read(found);
            assert_eq!(found.len(), expected.len(), "{what}");
            let scale = expected.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
            for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                assert!(
                    (a - b).abs() <= tolerance * scale,
                    "{what}: element {i} is {a}, expected {b}, scale {scale}"
                );
            }
        }
    }

    fn each(mut test: impl FnMut(&Case<'_>)) {
        let emulated = &Emulated::device();
        for sizes in SIZES {
            for dtype in [DType::F32, DType::F64, DType::BF16] {
                let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
                test(&Case { emulated, sizes, dtype, wide, aligned: true });
                if sizes == [3, 4, 300] {
                    test(&Case { emulated, sizes, dtype, wide, aligned: false });
                }
            }
        }
    }

    /// Σ over `terms`, for each of `count`.
    fn sums(count: usize, terms: usize, term: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..count).map(|i| (0..terms).map(|j| term(i, j)).sum()).collect()
    }

    /// `A·X + bᵀ ⊗ F`.
    fn written([tokens, n, c]: [usize; 3], x: &[f64], f: &[f64], mix: &[f64], write: &[f64]) -> Vec<f64> {
        sums(tokens * n * c, n + 1, |at, j| {
            let (row, channel) = (at / c, at % c);
            let token = row / n;
            if j < n {
                mix[row * n + j] * x[(token * n + j) * c + channel]
            } else {
                write[row] * f[token * c + channel]
            }
        })
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn read_and_write_and_what_flows_back() {
        each(|case| {
            let &Case { sizes: sizes @ [tokens, n, c], dtype, wide, .. } = case;
            let cuda = case.emulated.cuda;
            let (x, f) = (case.numbers([tokens, n, c], dtype, 1), case.numbers([tokens, c], dtype, 2));
            let (a, b, mix) = (
                case.numbers([tokens, n], wide, 3),
                case.numbers([tokens, n], wide, 4),
                case.numbers([tokens, n, n], wide, 5),
            );
            let (g, h) = (case.numbers([tokens, n, c], dtype, 6), case.numbers([tokens, c], dtype, 7));
            let left = Left { f: f.placed, mix: mix.placed, write: b.placed };
            let at = |v: &[f64], row: usize, channel: usize| v[row * c + channel];

            let expected =
                sums(tokens * c, n, |i, j| a.values[i / c * n + j] * at(&x.values, i / c * n + j, i % c));
            case.assert_near(launch::read(cuda, &x.placed, &a.placed), &expected, "read");
            let expected = written(sizes, &x.values, &f.values, &mix.values, &b.values);
            case.assert_near(launch::write(cuda, &x.placed, &left), &expected, "write");

            let found = launch::write_backward(cuda, &g.placed, &x.placed, &left).unwrap();
            let expected =
                sums(tokens * c, n, |i, j| b.values[i / c * n + j] * at(&g.values, i / c * n + j, i % c));
            case.assert_near(Ok(found.f), &expected, "F̄");
            let expected = sums(tokens * n * n, c, |i, k| {
                let (row, j) = (i / n, i % n);
                at(&g.values, row, k) * at(&x.values, row / n * n + j, k)
            });
            case.assert_near(Ok(found.mix), &expected, "Ā");
            let expected = sums(tokens * n, c, |row, k| at(&g.values, row, k) * at(&f.values, row / n, k));
            case.assert_near(Ok(found.write), &expected, "b̄");
            let found = launch::read_backward(cuda, &h.placed, &x.placed).unwrap();
            let expected = sums(tokens * n, c, |row, k| at(&x.values, row, k) * at(&h.values, row / n, k));
            case.assert_near(Ok(found), &expected, "ā");
        });
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn projection_and_what_flows_back() {
        let eps = 1e-3;
        each(|case| {
            let &Case { sizes: [tokens, n, c], dtype, wide, .. } = case;
            let cuda = case.emulated.cuda;
            let (k, m) = (n * c, n * n + 2 * n);
            let (x, phi) = (case.numbers([tokens, n, c], dtype, 1), case.numbers([k, m], wide, 2));
            let roots: Vec<f64> = x
                .values
                .chunks(k)
                .map(|v| (v.iter().map(|v| v * v).sum::<f64>() / k as f64 + eps).sqrt())
                .collect();
            let values = sums(tokens * m, k, |i, j| {
                x.values[i / m * k + j] * phi.values[j * m + i % m] / roots[i / m]
            });
            let [projected, r] = launch::project(cuda, &x.placed, &phi.placed, eps).unwrap();
            case.assert_near(Ok(projected.clone()), &values, "v·φ/r");
            case.assert_near(Ok(r.clone()), &roots, "r");

            let (g, mix) = (case.numbers([tokens, n, c], dtype, 3), case.numbers([tokens, n, n], wide, 4));
            let (h, a) = (case.numbers([tokens, c], dtype, 5), case.numbers([tokens, n], wide, 6));
            let p = case.numbers([tokens, m], wide, 7);
            let sources = Sources {
                written: [&g.placed, &mix.placed],
                read: [&h.placed, &a.placed],
                projected: [&p.placed, &projected, &r],
            };
            let [dx, dphi] = launch::stream_backward(cuda, &x.placed, &phi.placed, &sources).unwrap();
            let along: Vec<f64> = sums(tokens, m, |t, i| p.values[t * m + i] * values[t * m + i]);
            let expected: Vec<f64> = (0..tokens * k)
                .map(|at| {
                    let (row, channel) = (at / c, at % c);
                    let (token, i) = (row / n, row % n);
                    let of_mix: f64 = (0..n)
                        .map(|j| {
                            mix.values[(token * n + j) * n + i] * g.values[(token * n + j) * c + channel]
                        })
                        .sum();
                    let of_phi: f64 =
                        (0..m).map(|q| p.values[token * m + q] * phi.values[(i * c + channel) * m + q]).sum();
                    of_mix + a.values[row] * h.values[token * c + channel] + of_phi / roots[token]
                        - along[token] * x.values[at] / (roots[token] * roots[token] * k as f64)
                })
                .collect();
            case.assert_near(Ok(dx), &expected, "X̄");
            let expected =
                sums(k * m, tokens, |i, t| x.values[t * k + i / m] * p.values[t * m + i % m] / roots[t]);
            case.assert_near(Ok(dphi), &expected, "φ̄");
        });
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn sums_are_split_where_there_is_much_to_add() {
        let emulated = &Emulated::device();
        let cuda = emulated.cuda;
        // Two parts of the numbers, and two of the tokens; neither ends with a whole one.
        let (tokens, n, c) = (300, 2, 700);
        let case =
            Case { emulated, sizes: [tokens, n, c], dtype: DType::F32, wide: DType::F32, aligned: true };
        let (x, phi) = (case.numbers([tokens, n, c], DType::F32, 1), case.numbers([n * c, 8], DType::F32, 2));
        let [projected, r] = launch::project(cuda, &x.placed, &phi.placed, 0.0).unwrap();
        let k = n * c;
        let roots = sums(tokens, k, |t, j| x.values[t * k + j].powi(2) / k as f64);
        let roots: Vec<f64> = roots.iter().map(|v| v.sqrt()).collect();
        case.assert_near(Ok(r.clone()), &roots, "r");
        let expected =
            sums(tokens * 8, k, |i, j| x.values[i / 8 * k + j] * phi.values[j * 8 + i % 8] / roots[i / 8]);
        case.assert_near(Ok(projected.clone()), &expected, "v·φ/r");
        let zeros = |shape: &[usize]| emulated.place(&Tensor::zeros(shape, DType::F32));
        let (g, mix, h, a) =
            (zeros(&[tokens, n, c]), zeros(&[tokens, n, n]), zeros(&[tokens, c]), zeros(&[tokens, n]));
        let p = case.numbers([tokens, 8], DType::F32, 3);
        let sources = Sources { written: [&g, &mix], read: [&h, &a], projected: [&p.placed, &projected, &r] };
        let [_, dphi] = launch::stream_backward(cuda, &x.placed, &phi.placed, &sources).unwrap();
        let expected =
            sums(k * 8, tokens, |i, t| x.values[t * k + i / 8] * p.values[t * 8 + i % 8] / roots[t]);
        case.assert_near(Ok(dphi), &expected, "φ̄");
    }

    #[test]
    #[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
    fn what_is_computed_again_has_the_bits_of_what_was() {
        each(|case| {
            let &Case { sizes: [tokens, n, c], dtype, wide, .. } = case;
            let cuda = case.emulated.cuda;
            let x = case.numbers([tokens, n, c], dtype, 1).placed;
            // More than one launch takes.
            let left: Vec<Left> = (0..10)
                .map(|l| Left {
                    f: case.numbers([tokens, c], dtype, 10 + l).placed,
                    mix: case.numbers([tokens, n, n], wide, 20 + l).placed,
                    write: case.numbers([tokens, n], wide, 30 + l).placed,
                })
                .collect();
            let mut stream = x.clone();
            let again = launch::recompute(cuda, &x, &left).unwrap();
            for (l, (left, again)) in left.iter().zip(&again).enumerate() {
                stream = launch::write(cuda, &stream, left).unwrap();
                let bits = |x: &Tensor| -> Vec<u64> {
                    case.emulated.read(Ok(x.clone())).iter().map(|v| v.to_bits()).collect()
                };
                assert_eq!(bits(again), bits(&stream), "{dtype} {:?}, block {l}", case.sizes);
            }
        });
    }

    #[test]
    #[should_panic(expected = "streams: expected [tokens, n, C], found f32[2, 3]")]
    fn streams_have_three_axes() {
        Sizes::of(&Tensor::zeros([2, 3], DType::F32));
    }
}
