//! What the figures were taken on. Out: processor, memory, kernel, disk, versions of everybody, the date.

use std::fs;
use std::path::Path;
use std::process::Command;

use chrono::Utc;

use crate::agent::program;

/// Lines of Markdown.
#[must_use]
pub fn describe(disk: &Path) -> Vec<String> {
    let cpu = first_line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = first_line("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let device = said("df", &["--output=source,fstype", &disk.display().to_string()]);
    let mut lines = vec![
        format!("- date: {}", Utc::now().format("%Y-%m-%d %H:%M UTC")),
        format!("- machine: {processors} x {cpu}, memory {memory}, kernel {}", kernel.trim()),
        format!("- disk of all contestants: {}", device.lines().last().unwrap_or_default().trim()),
    ];
    let agent = program("tapfleetd").display().to_string();
    let versions: [(&str, &[&str]); 7] = [
        (&agent, &["--version"]),
        ("tcpdump", &["--version"]),
        ("dumpcap", &["--version"]),
        ("netsniff-ng", &["--version"]),
        ("editcap", &["--version"]),
        ("rclone", &["--version"]),
        ("valgrind", &["--version"]),
    ];
    let versions = versions.map(|(program, arguments)| said(program, arguments).lines().next().unwrap_or("missing").trim().to_owned());
    lines.push(format!("- versions: {}", versions.join("; ")));
    lines
}

/// What a line of a file says behind the name.
fn first_line(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What a program says, on either stream.
#[must_use]
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()).unwrap_or_default()
}
