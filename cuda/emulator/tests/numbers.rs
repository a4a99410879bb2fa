//! What kernels compute, against f64; what a launch counts; what it refuses.

mod launching;

use launching::*;
use limpid_emulator::{Build, Event, Kind, Options, Report, Shape, Warp};

const TEXT: &str = include_str!("kernels/numbers.cu");
const BUILDS: [Build; 2] = [Build::Fast, Build::Checked];

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn sums_of_rows() {
    let (rows, columns) = (5, 1000);
    let x = noise(rows * columns, 1);
    let exact: Vec<f64> = x.chunks(columns).map(|row| row.iter().map(|&x| f64::from(x)).sum()).collect();
    for build in BUILDS {
        let kernel = kernel(&program("numbers.cu", TEXT, build, &["TRANSPOSE_PITCH=33"]), "sum_rows_f32");
        let mut results = Vec::new();
        for seed in 0..4 {
            let mut card = Card::new();
            let (px, py) = (card.upload("x", &x), card.empty::<f32>("y", rows));
            let arguments = [argument(px), argument(py), argument(columns as i32)];
            let options = Options { seed, preempt: 100, ..Options::default() };
            let report = card.launch(&kernel, line(rows as u32, 256), &arguments, options);
            assert_clean(&report, "sum_rows_f32");
            let sums = card.download::<f32>(py, rows);
            for (sum, exact) in sums.iter().zip(&exact) {
                assert!((f64::from(*sum) - exact).abs() < 1e-5, "{sum}, exactly {exact}");
            }
            results.push(sums);
        }
        assert!(results.iter().all(|sums| *sums == results[0]), "the order of threads decides no bit");
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn sums_of_f64() {
    let x: Vec<f64> = noise(600, 2).into_iter().map(f64::from).collect();
    let kernel = kernel(&program("numbers.cu", TEXT, Build::Fast, &["TRANSPOSE_PITCH=33"]), "sum_rows_f64");
    let mut card = Card::new();
    let (px, py) = (card.upload("x", &x), card.empty::<f64>("y", 1));
    card.launch(&kernel, line(1, 256), &[argument(px), argument(py), argument(600)], Options::default());
    let (found, exact) = (card.download::<f64>(py, 1)[0], x.iter().sum::<f64>());
    assert!((found - exact).abs() < 1e-12, "{found}, exactly {exact}");
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn products_of_ragged_matrices() {
    for build in BUILDS {
        let kernel = kernel(&program("numbers.cu", TEXT, build, &["TRANSPOSE_PITCH=33"]), "product");
        for (m, n, k) in [(33, 17, 50), (16, 16, 16), (1, 40, 3)] {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let mut card = Card::new();
            let (pa, pb, pc) = (card.upload("a", &a), card.upload("b", &b), card.empty::<f32>("c", m * n));
            let sizes = [m, n, k].map(|size| argument(size as i32));
            let arguments: Vec<Vec<u8>> = [pa, pb, pc].map(argument).into_iter().chain(sizes).collect();
            let grid = [n.div_ceil(16) as u32, m.div_ceil(16) as u32, 1];
            let shape = Shape { grid, block: [16, 16, 1], dynamic_shared: 0 };
            let report = card.launch(&kernel, shape, &arguments, Options { seed: 3, ..Options::default() });
            assert_clean(&report, "product");
            for (i, found) in card.download::<f32>(pc, m * n).into_iter().enumerate() {
                let exact: f64 =
                    (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n])).sum();
                assert!((f64::from(found) - exact).abs() < 1e-5, "element {i} is {found}, exactly {exact}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn lanes_vote_and_shuffle() {
    for build in BUILDS {
        let kernel = kernel(&program("numbers.cu", TEXT, build, &["TRANSPOSE_PITCH=33"]), "votes");
        for seed in 0..8 {
            let mut card = Card::new();
            let py = card.empty::<i32>("y", 256);
            let report =
                card.launch(&kernel, line(1, 32), &[argument(py)], Options { seed, ..Options::default() });
            assert_clean(&report, "votes");
            let thirds = (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1i32 << lane).sum::<i32>();
            let expected = [
                |_: i32, thirds: i32| thirds,
                |_, _| 3,
                |lane, _| if lane < 3 { lane } else { lane - 3 },
                |lane, _| if lane % 8 + 5 < 8 { lane + 5 } else { lane },
                |lane, _| lane / 16 * 16 + 3,
                |lane, _| lane ^ 9,
                |_, _| 105,
                |lane, _| if lane < 16 { lane ^ 1 } else { lane ^ 2 },
            ];
            let expected: Vec<i32> =
                expected.iter().flat_map(|f| (0..32).map(move |lane| f(lane, thirds))).collect();
            assert_eq!(card.download::<i32>(py, 256), expected);
        }
    }
}

/// The traffic of a launch of 32 threads, by line of the source.
fn traffic_of(text_of_line: &str, shared: bool, report: &Report) -> f64 {
    let line =
        TEXT.lines().position(|line| line.contains(text_of_line)).expect("a line of the file") as u32 + 1;
    let traffic =
        report.traffic.iter().find(|t| t.place.is_in("numbers.cu", line) && t.shared == shared && !t.write);
    traffic.unwrap_or_else(|| panic!("no traffic at line {line} in {:#?}", report.traffic)).per_request()
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn bank_conflicts_are_counted() {
    for (width, passes) in [("TRANSPOSE_PITCH=32", 32.0), ("TRANSPOSE_PITCH=33", 1.0)] {
        let kernel = kernel(&program("numbers.cu", TEXT, Build::Checked, &[width]), "transpose");
        let mut card = Card::new();
        let x = noise(1024, 1);
        let (px, py) = (card.upload("x", &x), card.empty::<f32>("y", 1024));
        let shape = Shape { grid: [1, 1, 1], block: [32, 32, 1], dynamic_shared: 0 };
        let options = Options { traffic: true, ..Options::default() };
        let report = card.launch(&kernel, shape, &[px, py].map(argument), options);
        assert_clean(&report, "transpose");
        assert_eq!(traffic_of("// the column", true, &report), passes);
        let expected: Vec<f32> = (0..1024).map(|i| x[i % 32 * 32 + i / 32]).collect();
        assert_eq!(card.download::<f32>(py, 1024), expected);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn sectors_are_counted() {
    let kernel = kernel(&program("numbers.cu", TEXT, Build::Checked, &["TRANSPOSE_PITCH=33"]), "strided");
    for (stride, sectors) in [(1, 4.0), (2, 8.0), (8, 32.0), (32, 32.0), (0, 1.0)] {
        let mut card = Card::new();
        let (px, py) = (card.upload("x", &noise(1024, 1)), card.empty::<f32>("y", 32));
        let options = Options { traffic: true, ..Options::default() };
        let arguments = [argument(px), argument(py), argument(stride)];
        let report = card.launch(&kernel, line(1, 32), &arguments, options);
        assert_eq!(traffic_of("x[threadIdx.x * stride]", false, &report), sectors, "stride {stride}");
        assert_eq!(report.touched, {
            let mut touched = vec![(px, true, false), (py, false, true)];
            touched.sort_unstable();
            touched
        });
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn a_watched_warp_tells_its_steps() {
    let kernel = kernel(&program("numbers.cu", TEXT, Build::Checked, &["TRANSPOSE_PITCH=33"]), "strided");
    let mut card = Card::new();
    let (px, py) = (card.upload("x", &noise(64, 1)), card.empty::<f32>("y", 32));
    let options = Options { watch: Some(Warp { block: 0, warp: 0 }), ..Options::default() };
    let arguments = [argument(px), argument(py), argument(2)];
    let report = card.launch(&kernel, line(1, 32), &arguments, options);
    let steps: Vec<&str> =
        report.events.iter().filter(|event| event.lane == 5).map(|event| &*event.what).collect();
    assert_eq!(steps, ["reads 4 bytes at offset 40 of `x`", "writes 4 bytes at offset 20 of `y`"]);
    let is_in_the_kernel = |event: &Event| event.place.outermost().function == "strided";
    assert!(report.events.len() == 64 && report.events.iter().all(is_in_the_kernel));
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn blocks_may_hand_over_results() {
    for (defines, races) in
        [(&["TRANSPOSE_PITCH=33"][..], false), (&["TRANSPOSE_PITCH=33", "WITHOUT_FENCE"], true)]
    {
        let kernel = kernel(&program("numbers.cu", TEXT, Build::Checked, defines), "last_block");
        for seed in 0..20 {
            let x = noise(7 * 32, 1);
            let mut card = Card::new();
            let (px, parts) = (card.upload("x", &x), card.empty::<f32>("parts", 7));
            let (arrived, py) = (card.upload("arrived", &[0u32]), card.empty::<f32>("y", 1));
            let arguments = [px, parts, arrived, py].map(argument);
            let report =
                card.launch(&kernel, line(7, 32), &arguments, Options { seed, ..Options::default() });
            if races {
                assert!(report.findings.iter().any(|finding| finding.kind == Kind::Race), "seed {seed}");
            } else {
                assert_clean(&report, "last_block");
            }
            let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
            assert!((f64::from(card.download::<f32>(py, 1)[0]) - exact).abs() < 1e-4);
        }
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn launches_that_no_card_takes_are_refused() {
    let kernel = kernel(&program("numbers.cu", TEXT, Build::Fast, &["TRANSPOSE_PITCH=33"]), "votes");
    let mut card = Card::new();
    let py = card.empty::<i32>("y", 256);
    let too_much = Shape { dynamic_shared: 228 << 10, ..line(1, 32) };
    for (shape, word) in
        [(line(1, 64), "64 threads"), (line(0, 32), "0, 1, 1"), (too_much, "bytes of dynamic")]
    {
        let report = card.launch(&kernel, shape, &[argument(py)], Options::default());
        assert!(report.stopped && report.findings[0].kind == Kind::Limit);
        assert!(report.findings[0].message.contains(word), "{}", report.findings[0]);
    }
}

#[test]
#[cfg_attr(not(has_gxx), ignore = "g++ is not installed")]
fn text_with_a_mistake_is_refused_with_its_line() {
    let text = "KERNEL(32, broken, (float* y)) {\n    y[threadIdx.x] = missing;\n}\n";
    let source = limpid_emulator::Source { name: "broken.cu", text, headers: &HEADERS, defines: &[] };
    let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let error = limpid_emulator::compile(&source, Build::Fast, &cache).expect_err("an undeclared name");
    assert!(error.to_string().contains("broken.cu:2"), "{error}");
}
