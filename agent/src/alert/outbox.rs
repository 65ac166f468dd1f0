//! A folder of mails that have not been sent, and the troubles that they are about. Any process may file, one at a time sends.
//! In: mails. Out: the same, in order, at least once (see [`sender`](super::sender)). Never: a mail without its trouble or a trouble without its mail, after
//! whatever crash; more than [`MAILS_MAX`] mails but for what ends; trust in a file that lies there.
//!
//! `troubles.json` holds the state, and mails that are about to be filed: it is renamed into place before they are, and again
//! after, so that whoever opens the folder next can finish that. `<number>-<kind>-<id>.mail` is a mail. `lock` is held for each
//! look and change, `sending` by the process that sends. `left.json` is what the last agent knew of itself.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::fold::{Kind, State};
use super::mail::{BODY_MAX, Mail, Place};

/// So many mails wait at most; when they do, no trouble begins and none is repeated. What has begun can still end.
pub const MAILS_MAX: usize = 200;

/// So many mails of people and programs may wait beside those of the agent.
const NOTES_MAX: usize = MAILS_MAX + 50;

/// The most bytes of a mail's file: every byte of its body escaped.
const MAIL_BYTES_MAX: u64 = 8 * BODY_MAX as u64;

/// The most bytes of the state's file: it may hold mails about to be filed.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// Numbers beyond this are not ours.
const NUMBER_MAX: u64 = 1 << 50;

/// The most names of mails that a look takes in.
const NAMES_MAX: usize = 4 * MAILS_MAX;

/// How often, and how many times, the lock is asked for: it is held for some milliseconds.
const LOCK_EVERY: Duration = Duration::from_millis(20);
const LOCK_TRIES: u32 = 150;

/// How long a lock is waited for.
pub const LOCK_PATIENCE: Duration = LOCK_EVERY.saturating_mul(LOCK_TRIES);

/// Of so many mails that were filed last the keys are remembered.
const RECENT_MAX: usize = 2 * MAILS_MAX;

/// The most bytes of what an agent leaves.
const LEFT_BYTES_MAX: u64 = 64 << 10;

const STATE: &str = "troubles.json";
const LEFT: &str = "left.json";
const VERSION: u32 = 1;

/// What can go wrong with the outbox.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {act} '{}': {cause}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Somebody holds the lock.
    #[error("cannot use the outbox '{}': another process has held its lock for {} s; end that one", dir.display(), LOCK_PATIENCE.as_secs())]
    Locked {
        /// Which.
        dir: PathBuf,
    },
    /// Its disk does not answer.
    #[error("cannot use the outbox '{}': its disk has not answered; see `dmesg` and the volume", dir.display())]
    Hangs {
        /// Where.
        dir: PathBuf,
    },
    /// No more mails fit.
    #[error("cannot file a mail: {waiting} wait already in the outbox '{}'; see why SNS does not take them", dir.display())]
    Full {
        /// Where.
        dir: PathBuf,
        /// How many wait.
        waiting: usize,
    },
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Io { act, path: path.into(), cause }
}

/// `troubles.json`.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// Number of the next mail.
    next: u64,
    state: State,
    /// Mails about to be filed, with the names of their files.
    #[serde(default)]
    unfiled: Vec<(String, Mail)>,
    /// Keys of the mails that were filed last: one that is filed again is filed once.
    #[serde(default)]
    recent: VecDeque<String>,
}

/// What an agent leaves for those who file and send after it, without the network and when its settings can no longer be read.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Left {
    /// Name of the host it ran on: on another one only the topic holds.
    #[serde(default)]
    pub host: String,
    /// Where it was.
    #[serde(default)]
    pub place: Place,
    /// Its topic.
    #[serde(default)]
    pub topic_arn: Option<String>,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Outbox {
    dir: PathBuf,
}

/// The folder, for one who changes it.
#[derive(Debug)]
pub struct Opened {
    outbox: Outbox,
    kept: Kept,
    /// Held, never read: closing it unlocks.
    _lock: File,
}

/// The right to send.
#[derive(Debug)]
pub struct Sending {
    /// Held, never read: closing it unlocks.
    _lock: File,
}

impl Outbox {
    /// The folder at `dir`; made when it is first used.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Locks the folder and finishes what a process that died had begun.
    ///
    /// # Errors
    /// When it cannot be made, locked or written.
    pub fn open(&self) -> Result<Opened, Error> {
        let file = self.lock_file("lock")?;
        for _ in 0..LOCK_TRIES {
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let mut opened = Opened { kept: self.read_state()?, outbox: self.clone(), _lock: file };
                opened.finish()?;
                return Ok(opened);
            }
            std::thread::sleep(LOCK_EVERY);
        }
        Err(Error::Locked { dir: self.dir.clone() })
    }

    /// The right to send, unless another process has it.
    ///
    /// # Errors
    /// When the folder cannot be made or its lock not be opened.
    pub fn sending(&self) -> Result<Option<Sending>, Error> {
        let file = self.lock_file("sending")?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(Sending { _lock: file }))
    }

    fn lock_file(&self, name: &str) -> Result<File, Error> {
        // What stands in a mail is for those who run the agent.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed("make the outbox", &self.dir))?;
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        // Root's lock file must do for the agent's user: a lock needs no right to write.
        if let Err(cause) = options.write(true).create_new(true).mode(0o644).open(&path)
            && cause.kind() != ErrorKind::AlreadyExists
        {
            return Err(failed("make the lock", &path)(cause));
        }
        open_plain(&path).map_err(failed("open the lock", &path))
    }

    /// A state that cannot be read is put aside: alerts must go on.
    fn read_state(&self) -> Result<Kept, Error> {
        let path = self.dir.join(STATE);
        let read = match read_plain(&path, STATE_BYTES_MAX) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Kept::default()),
            read => read,
        };
        let kept = read.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).map_err(io::Error::from));
        match kept {
            Ok(mut kept) => {
                kept.next = kept.next.min(NUMBER_MAX);
                kept.unfiled.retain(|(name, _)| number_of(name).is_some());
                kept.recent.truncate(RECENT_MAX);
                Ok(kept)
            }
            Err(cause) => {
                tracing::error!(%cause, "the state of the alerts '{}' cannot be read and is put aside: troubles begin anew", path.display());
                self.put_aside(STATE)?;
                Ok(Kept::default())
            }
        }
    }

    fn write_state(&self, kept: &Kept) -> Result<(), Error> {
        let json = serde_json::to_vec(kept).map_err(|cause| failed("write", &self.dir.join(STATE))(cause.into()))?;
        self.write(STATE, &json)
    }

    /// Writes a file whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.dir.join(name);
        let draft = self.dir.join(format!("{name}.draft"));
        let write = || {
            // One that a dead process left, or a folder or link of that name.
            remove_any(&draft)?;
            let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
            // Root's files must do for the agent's user; the folder keeps others out.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            self.sync()
        };
        write().map_err(failed("write", &path))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn put_aside(&self, name: &str) -> Result<(), Error> {
        let (path, aside) = (self.dir.join(name), self.dir.join(format!("damaged-{name}")));
        let put = || {
            remove_any(&aside)?;
            fs::rename(&path, &aside)
        };
        put().map_err(failed("put aside", &path))
    }

    /// Names of the mails, in order; the first ones when there are more than could be.
    fn names(&self) -> Result<BTreeSet<String>, Error> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.dir).map_err(failed("list the outbox", &self.dir))? {
            let entry = entry.map_err(failed("list the outbox", &self.dir))?;
            if let Some(name) = entry.file_name().to_str()
                && number_of(name).is_some()
            {
                names.insert(name.to_owned());
                if names.len() > NAMES_MAX {
                    names.pop_last();
                }
            }
        }
        Ok(names)
    }

    /// Whether a mail still waits.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        fs::symlink_metadata(self.dir.join(name)).is_ok()
    }

    /// Leaves what the agent knows, if it is not what lies there already.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn leave(&self, left: &Left) -> Result<(), Error> {
        let _opened = self.open()?;
        if self.left().as_ref() == Some(left) {
            return Ok(());
        }
        let json = serde_json::to_vec(left).map_err(|cause| failed("write", &self.dir.join(LEFT))(cause.into()))?;
        self.write(LEFT, &json)
    }

    /// What the last agent left; `None` when there is nothing, or nothing that can be read.
    #[must_use]
    pub fn left(&self) -> Option<Left> {
        serde_json::from_slice(&read_plain(&self.dir.join(LEFT), LEFT_BYTES_MAX).ok()?).ok()
    }

    /// For how long the oldest mail has waited; a stamp of the future, which a clock that was set back leaves, counts as long ago.
    /// `None` when none waits.
    ///
    /// # Errors
    /// When the folder cannot be listed; that it is not there is none.
    pub fn oldest(&self) -> Result<Option<Duration>, Error> {
        let names = match self.names() {
            Err(Error::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            names => names?,
        };
        // One that is sent meanwhile waits no longer.
        let stamps = names.iter().filter_map(|name| fs::symlink_metadata(self.dir.join(name)).ok()?.modified().ok());
        Ok(stamps.map(|stamp| SystemTime::now().duration_since(stamp).unwrap_or(Duration::MAX)).max())
    }

    /// Removes a mail that was sent.
    ///
    /// # Errors
    /// When it cannot be removed: it would be sent again.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        remove_any(&path).and_then(|()| self.sync()).map_err(failed("remove", &path))
    }
}

impl Opened {
    /// The troubles.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.kept.state
    }

    /// How many mails wait.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn waiting(&self) -> Result<usize, Error> {
        Ok(self.outbox.names()?.len())
    }

    /// Keeps the state and files the mails, both or neither; gives the names of the mails. A repeat takes the place of an
    /// earlier one of the same trouble that was not sent. A mail that was filed before is not filed again.
    ///
    /// # Errors
    /// When a file cannot be written; what was begun is then finished by whoever opens the folder next, also when the same mails
    /// are filed once more.
    pub fn file(&mut self, state: State, mut mails: Vec<Mail>) -> Result<Vec<String>, Error> {
        let names = self.outbox.names()?;
        mails.retain(|mail| mail.key.is_empty() || !self.kept.recent.contains(&mail.key));
        let notes = !mails.is_empty() && mails.iter().all(|mail| mail.kind == Kind::Note);
        if notes && names.len() >= NOTES_MAX {
            return Err(Error::Full { dir: self.outbox.dir.clone(), waiting: names.len() });
        }
        let last = names.last().and_then(|name| number_of(name)).unwrap_or(0);
        let mut next = self.kept.next.max(last + 1);
        let superseded: Vec<&String> =
            names.iter().filter(|name| mails.iter().any(|mail| mail.kind == Kind::Repeat && name.ends_with(&ending(mail)))).collect();
        let unfiled: Vec<(String, Mail)> = mails
            .into_iter()
            .map(|mail| {
                let name = format!("{next:020}{}", ending(&mail));
                next += 1;
                (name, mail)
            })
            .collect();
        let filed: Vec<String> = unfiled.iter().map(|(name, _)| name.clone()).collect();
        let mut recent = std::mem::take(&mut self.kept.recent);
        recent.extend(unfiled.iter().map(|(_, mail)| mail.key.clone()));
        recent.drain(..recent.len().saturating_sub(RECENT_MAX));
        self.kept = Kept { version: VERSION, next, state, unfiled, recent };
        self.outbox.write_state(&self.kept)?;
        self.finish()?;
        for name in superseded {
            self.outbox.remove(name)?;
        }
        Ok(filed)
    }

    /// Files what is about to be filed.
    fn finish(&mut self) -> Result<(), Error> {
        if self.kept.unfiled.is_empty() {
            return Ok(());
        }
        for (name, mail) in &self.kept.unfiled {
            let json = serde_json::to_vec(mail).map_err(|cause| failed("write", &self.outbox.dir.join(name))(cause.into()))?;
            self.outbox.write(name, &json)?;
        }
        self.kept.unfiled.clear();
        self.outbox.write_state(&self.kept)
    }

    /// The mail that is to be sent first, but for those named in `sent`. A file that is no mail is put aside.
    ///
    /// # Errors
    /// When the folder cannot be listed, or such a file not be put aside.
    pub fn first(&self, sent: &BTreeSet<String>) -> Result<Option<(String, Mail)>, Error> {
        for name in self.outbox.names()?.into_iter().filter(|name| !sent.contains(name)) {
            let read = read_plain(&self.outbox.dir.join(&name), MAIL_BYTES_MAX);
            match read.and_then(|bytes| serde_json::from_slice::<Mail>(&bytes).map_err(io::Error::from)) {
                Ok(mail) => return Ok(Some((name, mail.checked()))),
                Err(cause) => {
                    tracing::error!(%cause, "'{name}' in the outbox is no mail and is put aside");
                    self.outbox.put_aside(&name)?;
                }
            }
        }
        Ok(None)
    }
}

fn ending(mail: &Mail) -> String {
    format!("-{}-{}.mail", mail.kind.name(), mail.id)
}

/// The number of a mail's file; `None` when the name is no mail's.
fn number_of(name: &str) -> Option<u64> {
    let (number, rest) = name.strip_suffix(".mail")?.split_once('-')?;
    let fits = name.len() <= 200 && number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit());
    let plain = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    number.parse().ok().filter(|number| fits && plain && *number < NUMBER_MAX)
}

/// Opens a plain file for reading: no link is followed, no pipe is waited for.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    Ok(file)
}

fn read_plain(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}

/// Removes a file or an empty folder of that name, if there is any.
fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(cause) if cause.kind() == ErrorKind::IsADirectory => fs::remove_dir(path),
        removed => removed,
    };
    match removed {
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests;
