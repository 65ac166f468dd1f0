//! The packages that `make package` makes, and what is in them.
//! In: packaging/package.sh. Out: the .deb and the .rpm, unpacked, and what their makers say of them. Never: installs one on this host.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs};

use crate::program::run;

/// A .deb and an .rpm of the same source.
#[derive(Debug)]
pub struct Packages {
    /// For Debian and Ubuntu.
    pub deb: PathBuf,
    /// For Amazon Linux.
    pub rpm: PathBuf,
}

impl Packages {
    /// Those of this source, made if need be; the first time that takes a quarter of an hour.
    ///
    /// # Panics
    /// When they cannot be made; says why.
    #[must_use]
    pub fn of_this_source() -> &'static Self {
        static MADE: OnceLock<Packages> = OnceLock::new();
        MADE.get_or_init(|| Self::make(&[]))
    }

    /// Those of the same programs in a folder of the test's own, with another version.
    ///
    /// # Panics
    /// When they cannot be made; says why.
    #[must_use]
    pub fn with_version(version: &str, folder: &Path) -> Self {
        Self::make(&[("TAPFLEET_VERSION", version), ("TAPFLEET_PACKAGES", folder.to_str().unwrap())])
    }

    fn make(variables: &[(&str, &str)]) -> Self {
        let script = root().join("packaging/package.sh");
        // Under sudo, cargo may not be where programs are looked for.
        let cargo = Path::new(env!("CARGO")).parent().unwrap().display();
        let path = format!("{cargo}:{}", env::var("PATH").unwrap_or_default());
        let output = Command::new(&script).env("PATH", path).envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
        let paths: Vec<PathBuf> = String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
        let of = |kind: &str| {
            let found = paths.iter().find(|path| path.extension().is_some_and(|found| found == kind));
            found.unwrap_or_else(|| panic!("no .{kind} among {paths:?}")).clone()
        };
        Self { deb: of("deb"), rpm: of("rpm") }
    }

    /// Unpacks both into folders below `folder`: the .deb's files, the .rpm's files.
    ///
    /// # Panics
    /// When one cannot be read.
    #[must_use]
    pub fn unpack(&self, folder: &Path) -> [PathBuf; 2] {
        let [deb, rpm] = ["deb", "rpm"].map(|kind| folder.join(kind));
        fs::create_dir_all(&rpm).unwrap();
        run("dpkg-deb", &["--extract", self.deb.to_str().unwrap(), deb.to_str().unwrap()]);
        let script = r#"set -o pipefail; rpm2cpio "$0" | cpio --quiet --extract --make-directories --no-absolute-filenames"#;
        let output = Command::new("bash").args(["-c", script]).arg(&self.rpm).current_dir(&rpm).output().unwrap();
        assert!(output.status.success(), "{}: {}", self.rpm.display(), String::from_utf8_lossy(&output.stderr));
        [deb, rpm]
    }
}

/// The project's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}
