//! The same work by PyTorch, which a script times in a process of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::report::{Library, Report};

/// Runs the script beside the report, and puts what it says into the report's rows.
///
/// # Errors
/// If there is no Python, or no PyTorch for it; the report is as before then.
pub fn ask(script: &Path, report: &mut Report) -> Result<(), String> {
    let folder = std::env::temp_dir().join(format!("limpid-measure-{}", std::process::id()));
    let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(fail)?;
    let (asked, answer) = (folder.join("limpid.json"), folder.join("pytorch.json"));
    std::fs::write(&asked, report.to_json().to_string()).map_err(fail)?;
    // What it prints on the way is progress.
    let done = Command::new("python3").arg(script).args([&asked, &answer]).stdout(Stdio::null()).status();
    let read = std::fs::read_to_string(&answer);
    let _ = std::fs::remove_dir_all(&folder);
    match done {
        Err(error) => return Err(format!("python3: {error}")),
        Ok(status) if !status.success() => return Err(format!("python3 {}: {status}", script.display())),
        Ok(_) => {}
    }
    let answer: Value = serde_json::from_str(&read.map_err(fail)?).map_err(|error| error.to_string())?;
    report.library = answer["by"].as_str().map(str::to_string);
    for said in answer["rows"].as_array().into_iter().flatten() {
        if let Some(row) = report.rows.iter_mut().find(|row| said["name"] == *row.name) {
            let time = |how: &str| said[how].as_f64();
            row.library = Some(Library { eager: time("eager"), compiled: time("compiled") });
        }
    }
    Ok(())
}
