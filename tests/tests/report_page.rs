//! The audit's report in a browser: headless Chromium opens the page as it is, looks, ticks and types.
//!
//! Without Chromium the test says that it is skipped; with `LIMPID_DEMAND_CHROMIUM` set it fails.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use limpid_tests::program::example;
use serde_json::{Value, json};

/// The browser that is installed, if one is.
fn chromium() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let works = |name: &&str| {
        let run = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    names.into_iter().find(works)
}

/// A browser with one page, spoken to by the DevTools protocol over a pair of pipes.
struct Browser {
    process: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    profile: PathBuf,
    session: Option<String>,
    next: u64,
    /// Everything the page or the browser wrote to the console.
    console: Vec<String>,
}

impl Browser {
    fn start(program: &str) -> Browser {
        let profile = std::env::temp_dir().join(format!("limpid-browser-{}", std::process::id()));
        // The protocol wants file descriptors 3 and 4; a shell moves its own input and output there.
        let script = "exec \"$0\" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
                      --disable-background-networking --disable-component-update --disable-sync \
                      --user-data-dir=\"$1\" --remote-debugging-pipe about:blank 3<&0 4>&1 0</dev/null 1>/dev/null 2>&1";
        let mut process = Command::new("sh")
            .args(["-c", script, program])
            .arg(&profile)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let to = process.stdin.take().expect("a pipe");
        let mut reader = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while reader.read_until(0, &mut message).is_ok_and(|count| count > 0) {
                message.pop();
                let value = serde_json::from_slice(&message).expect("the protocol is JSON");
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let (session, next, console) = (None, 0, Vec::new());
        let mut browser = Browser { process, to, from, profile, session, next, console };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_string);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Waits for the next message; keeps what is written to the console.
    fn receive(&mut self) -> Value {
        let message = self.from.recv_timeout(Duration::from_secs(300)).expect("the browser answers");
        match message["method"].as_str() {
            Some("Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown") => {
                self.console.push(message["params"].to_string());
            }
            Some("Network.requestWillBeSent") => {
                let url = message["params"]["request"]["url"].as_str().unwrap_or_default();
                if !url.starts_with("file:") && !url.starts_with("about:") {
                    self.console.push(format!("asked the network for {url}"));
                }
            }
            _ => {}
        }
        message
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("the browser listens");
        loop {
            let answer = self.receive();
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Opens a page at this width, on a light or a dark desktop.
    fn open(&mut self, url: &str, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", feature);
        self.call("Page.navigate", json!({"url": url}));
        while self.receive()["method"] != "Page.loadEventFired" {}
    }

    /// The value of an expression in the page.
    #[track_caller]
    fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Presses and releases a key, as a person does.
    fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Clicks in the middle of the first element that a selector finds.
    fn click(&mut self, selector: &str) {
        let place = format!(
            "(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'center'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] }})()"
        );
        let place = self.value(&place);
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", params);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// Panels that can be seen, by the network they are of.
const VISIBLE: &str =
    "[...document.querySelectorAll('.panels > div')].filter(e => e.getClientRects().length).length";

#[test]
fn the_report_works_in_a_browser() {
    let Some(program) = chromium() else {
        assert!(
            std::env::var_os("LIMPID_DEMAND_CHROMIUM").is_none(),
            "chromium is demanded and not installed"
        );
        println!("skipped: no chromium is installed");
        return;
    };
    let folder = std::env::temp_dir().join(format!("limpid-report-page-{}", std::process::id()));
    let names = ["plain", "residual", "mhc"];
    let made = Command::new(example("audit"))
        .args(["--variant", &names.join(","), "--depth", "5", "--width", "8", "--epochs", "2", "--quiet"])
        .arg("--out")
        .arg(&folder)
        .status();
    assert!(made.unwrap().success());
    let url = format!("file://{}", folder.join("report.html").display());
    let mut browser = Browser::start(program);

    for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
        browser.open(&url, width, scheme);
        let what = format!("{width} px, {scheme}");
        looks_right(&mut browser, &what, names.len() as u64);
        let wide = browser.value("document.documentElement.scrollWidth");
        assert!(wide.as_u64().unwrap() <= u64::from(width), "{what}: the page is {wide} wide");
        let [page, text] = ["backgroundColor", "color"].map(|property| {
            let colour = browser.value(&format!("getComputedStyle(document.body).{property}"));
            let colour = colour.as_str().unwrap().to_string();
            let numbers = colour.trim_start_matches("rgb(").trim_end_matches(')').split(", ");
            numbers.map(|channel| channel.parse::<f64>().unwrap()).sum::<f64>()
        });
        assert_eq!(page < text, scheme == "dark", "{what}: page {page}, text {text}");
    }

    browser.open(&url, 390, "light");
    choices_choose(&mut browser);
    browser.open(&url, 1280, "light");
    parts_unfold(&mut browser);
    assert!(browser.console.is_empty(), "the console is not empty: {:#?}", browser.console);
    drop(browser);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Every section with a figure has its panels, a table with rows, and the command that makes it again.
#[track_caller]
fn looks_right(browser: &mut Browser, what: &str, networks: u64) {
    let sections = browser.value(
        "[...document.querySelectorAll('main > section')].filter(s => s.querySelector('figure')).map(s => ({ \
           title: s.querySelector('h2').textContent, \
           figures: [...s.querySelectorAll('figure')].filter(f => f.getClientRects().length).length, \
           captions: [...s.querySelectorAll('figure')].every(f => f.querySelector('figcaption').textContent.length > 9), \
           panels: [...s.querySelectorAll('.panels > div > svg')].filter(e => e.getClientRects().length) \
             .map(e => [e.getBoundingClientRect().width, e.querySelectorAll('path').length]), \
           rows: s.querySelectorAll('details table tbody tr').length, \
           command: s.querySelector('.again + pre').textContent }))",
    );
    let sections = sections.as_array().unwrap();
    assert_eq!(sections.len(), 9, "{what}: {sections:#?}");
    for section in sections {
        let title = section["title"].as_str().unwrap();
        assert_eq!(section["figures"], 1, "{what}, {title}: one moment is shown");
        assert_eq!(section["captions"], true, "{what}, {title}");
        let panels = section["panels"].as_array().unwrap();
        // Only a network with several streams has cosines between them.
        let expected = if title == "Do the streams stay apart?" { 1 } else { networks };
        assert_eq!(panels.len() as u64, expected, "{what}, {title}");
        for panel in panels {
            assert!(panel[0].as_f64().unwrap() > 200.0, "{what}, {title}: a panel {} wide", panel[0]);
            assert!(panel[1].as_u64().unwrap() >= 3, "{what}, {title}: a panel with nothing in it");
        }
        assert!(section["rows"].as_u64().unwrap() >= networks, "{what}, {title}: the table has no rows");
        let command = section["command"].as_str().unwrap();
        assert_eq!(
            command,
            "cargo run --release --example audit -- --variant plain,residual,mhc --depth 5 --width 8 --epochs 2",
            "{what}, {title}"
        );
    }
    let summary =
        browser.value("document.querySelectorAll('section[aria-labelledby=summary] tbody tr').length");
    assert_eq!(summary, networks, "{what}");
    let unnamed = browser.value(
        "[...document.querySelectorAll('svg[role=img]')].filter(e => !e.getAttribute('aria-label')).length",
    );
    assert_eq!(unnamed, 0, "{what}: figures that a screen reader cannot name");
}

/// Networks and moments are chosen by mouse and by keyboard.
fn choices_choose(browser: &mut Browser) {
    let all = browser.value(VISIBLE).as_u64().unwrap();
    browser.click(".choose summary");
    assert_eq!(browser.value("document.querySelector('.choose details').open"), true);
    browser.click("#c2");
    assert_eq!(browser.value("document.querySelector('#c2').checked"), true, "a click ticks");
    assert_eq!(browser.value(VISIBLE), 9, "one panel a section: mhc");
    let rows = browser.value(
        "[...document.querySelectorAll('section[aria-labelledby=summary] tbody tr')] \
           .filter(e => e.getClientRects().length).map(e => e.querySelector('th').textContent)",
    );
    assert_eq!(rows, json!(["mhc"]));
    // From one box to the next by tabulator, ticked by the space bar.
    browser.value("document.querySelector('#c0').focus()");
    browser.press("Tab", 9, "");
    assert_eq!(browser.value("document.activeElement.id"), "c1");
    browser.press(" ", 32, " ");
    assert_eq!(browser.value("document.querySelector('#c1').checked"), true, "the space bar ticks");
    // Eight sections with both, and the cosines of mhc alone.
    assert_eq!(browser.value(VISIBLE), 17);
    let moment = "document.querySelector('section:has(#skip-branch-or-control) figure:first-of-type').getClientRects().length > 0";
    assert_eq!(browser.value(moment), false, "before training is not shown");
    browser.click("#c3");
    assert_eq!(browser.value(moment), true, "before training is shown");
    assert_eq!(browser.value(VISIBLE), 17, "and after training is not");
    browser.click(".choose button");
    assert_eq!(browser.value(VISIBLE), all);
    assert_eq!(browser.value("document.querySelectorAll('.choose :checked').length"), 1);
    assert_eq!(browser.value(moment), false, "back at after training");
}

/// What is folded unfolds by mouse and by keyboard, and does not widen the page.
fn parts_unfold(browser: &mut Browser) {
    let tape = "section:last-of-type details.part";
    let shown = format!("document.querySelector('{tape} pre').checkVisibility()");
    assert_eq!(browser.value(&shown), false);
    browser.click(&format!("{tape} > summary"));
    assert_eq!(browser.value(&format!("document.querySelector('{tape}').open")), true, "a click unfolds");
    browser.value(&format!("document.querySelector('{tape} details summary').focus()"));
    browser.press("Enter", 13, "\r");
    assert_eq!(browser.value(&shown), true, "the enter key unfolds");
    let text = browser.value(&format!("document.querySelector('{tape} pre').textContent"));
    assert!(text.as_str().unwrap().contains("layers.1/branch"), "{text}");
    browser.value("document.querySelectorAll('main details').forEach(e => e.open = true)");
    let tables = browser.value("[...document.querySelectorAll('table')].every(e => e.checkVisibility())");
    assert_eq!(tables, true, "every table can be seen");
    for width in [390, 1280] {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        browser.call("Emulation.setDeviceMetricsOverride", size);
        let wide = browser.value("document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(wide <= width, "unfolded, the page is {wide} wide at {width}");
    }
    // A link in the contents leads to its section, which the choices do not cover.
    browser.click("nav li:last-child a");
    let top = browser.value("document.querySelector('section:last-of-type h2').getBoundingClientRect().top");
    let bar = browser.value("document.querySelector('.choose').getBoundingClientRect().height");
    assert!(
        top.as_f64().unwrap() >= bar.as_f64().unwrap(),
        "the heading at {top} is under the bar, {bar} high"
    );
}
