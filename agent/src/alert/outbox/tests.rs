//! What is filed comes out, in order and whole, after crashes and among files that mean harm.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::symlink;
use std::time::Instant;

use rustix::fs::{CWD, Mode, mknodat};

use super::*;
use crate::alert::fold::Open;

fn mail(id: &str, kind: Kind) -> Mail {
    Mail::new(id, kind, &format!("{} {id}", kind.name()), "body")
}

fn state(names: &[&str]) -> State {
    let open = |name: &&str| {
        ((*name).to_owned(), Open { id: format!("{name}-1"), since_ns: 1, told_ns: 1, detail: String::new(), losses: Default::default() })
    };
    State { open: names.iter().map(open).collect(), ..State::default() }
}

/// Takes everything out, as the sender does.
fn subjects(outbox: &Outbox) -> Vec<String> {
    let mut subjects = Vec::new();
    while let Some((name, mail)) = outbox.open().unwrap().first(&BTreeSet::new()).unwrap() {
        outbox.remove(&name).unwrap();
        subjects.push(mail.subject);
    }
    subjects
}

#[test]
fn mails_come_out_in_the_order_they_were_filed_in_whoever_filed_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for n in 0..30 {
        let outbox = Outbox::new(&dir.path().join("made"));
        outbox
            .open()
            .unwrap()
            .file(State::default(), vec![mail(&format!("x{n}"), Kind::Begin), mail(&format!("x{n}"), Kind::Over)])
            .unwrap();
        expected.extend([format!("begin x{n}"), format!("over x{n}")]);
    }
    assert_eq!(subjects(&Outbox::new(&dir.path().join("made"))), expected);
}

#[test]
fn a_crash_between_state_and_mail_is_finished_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    // Something that cannot be removed stands where the mail is to be drafted: as far as this, and no further.
    let obstacle = dir.path().join("00000000000000000001-begin-a.mail.draft");
    fs::create_dir_all(obstacle.join("inside")).unwrap();
    outbox.open().unwrap().file(state(&["a"]), vec![mail("a", Kind::Begin)]).unwrap_err();
    assert!(outbox.open().is_err(), "still in the way");
    fs::remove_dir_all(&obstacle).unwrap();
    assert_eq!(outbox.open().unwrap().state(), &state(&["a"]));
    assert_eq!(subjects(&outbox), ["begin a"]);
    assert_eq!(outbox.open().unwrap().waiting().unwrap(), 0, "once");
}

#[test]
fn a_mail_that_is_filed_again_because_the_first_filing_failed_half_way_is_filed_once() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    let obstacle = dir.path().join("00000000000000000001-begin-a.mail.draft");
    fs::create_dir_all(obstacle.join("inside")).unwrap();
    let mails = vec![mail("a", Kind::Begin), mail("a", Kind::Repeat)];
    outbox.open().unwrap().file(state(&["a"]), mails.clone()).unwrap_err();
    fs::remove_dir_all(&obstacle).unwrap();
    for _ in 0..3 {
        let more = [mails.clone(), vec![mail("b", Kind::Begin)]].concat();
        assert_eq!(outbox.open().unwrap().file(state(&["a"]), more).unwrap().len(), 1, "only the new one");
    }
    assert_eq!(subjects(&outbox), ["begin a", "repeat a", "begin b", "begin b", "begin b"]);
}

#[test]
fn a_crash_before_the_state_is_kept_leaves_neither_state_nor_mail() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    outbox.open().unwrap().file(state(&["a"]), vec![]).unwrap();
    fs::write(dir.path().join("troubles.json.draft"), "{\"version\":1,\"next\":7,\"sta").unwrap();
    fs::write(dir.path().join("00000000000000000009-begin-b.mail.draft"), "half a mai").unwrap();
    assert_eq!(outbox.open().unwrap().state(), &state(&["a"]));
    assert_eq!(subjects(&outbox), Vec::<String>::new());
}

#[test]
fn an_unsent_repeat_gives_way_to_the_next_and_a_begin_or_an_end_never() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    outbox.open().unwrap().file(State::default(), vec![mail("a", Kind::Begin)]).unwrap();
    for _ in 0..1000 {
        outbox.open().unwrap().file(State::default(), vec![mail("a", Kind::Repeat)]).unwrap();
    }
    outbox.open().unwrap().file(State::default(), vec![mail("b", Kind::Repeat), mail("a", Kind::Over)]).unwrap();
    assert_eq!(subjects(&outbox), ["begin a", "repeat a", "repeat b", "over a"]);
}

#[test]
fn no_more_notes_are_taken_than_fit() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    outbox.open().unwrap().file(State::default(), (0..NOTES_MAX).map(|n| mail(&n.to_string(), Kind::Note)).collect()).unwrap();
    assert!(matches!(outbox.open().unwrap().file(State::default(), vec![mail("n", Kind::Note)]), Err(Error::Full { .. })));
    outbox.open().unwrap().file(State::default(), vec![mail("n", Kind::Over)]).unwrap();
}

#[test]
fn hostile_files_do_no_harm_and_do_not_hold_mails_up() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), r#"{"id":"secret","kind":"note","subject":"secret","body":"secret"}"#).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    let path = |name: &str| dir.path().join(name);
    symlink(outside.path(), path("00000000000000000001-begin-link.mail")).unwrap();
    mknodat(CWD, path("00000000000000000002-begin-pipe.mail"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::create_dir_all(path("00000000000000000003-begin-folder.mail").join("inside")).unwrap();
    File::create(path("00000000000000000004-begin-large.mail")).unwrap().set_len(1 << 40).unwrap();
    fs::write(path("00000000000000000005-begin-nested.mail"), "[".repeat(100_000)).unwrap();
    fs::write(path("00000000000000000006-begin-empty.mail"), "").unwrap();
    fs::write(path("00000000000000000007-begin-binary.mail"), [0xff; 100]).unwrap();
    let steering = r#"{"id":"../../x","kind":"begin","subject":"a\nBcc: b\u001b[2J","body":"\u0000"}"#;
    fs::write(path("00000000000000000008-begin-steering.mail"), steering).unwrap();
    for name in ["99999999999999999999-begin-x.mail", "18446744073709551616-begin-x.mail", "1-begin-x.mail", "x.mail", ".mail", "-.mail"] {
        fs::write(path(name), "not ours").unwrap();
    }
    let begun = Instant::now();
    outbox.open().unwrap().file(state(&["a"]), vec![mail("a", Kind::Begin)]).unwrap();
    assert_eq!(subjects(&outbox), ["a Bcc: b?[2J", "begin a"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(fs::read_to_string(outside.path()).unwrap().contains("secret"), "what a link leads to is left alone");
}

#[test]
fn a_state_that_cannot_be_read_is_put_aside() {
    for hostile in [&b"garbage"[..], b"", &[b'['; 200_000], br#"{"version":1,"next":18446744073709551616,"state":{}}"#] {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(dir.path());
        outbox.open().unwrap().file(state(&["a"]), vec![mail("a", Kind::Begin)]).unwrap();
        fs::write(dir.path().join(STATE), hostile).unwrap();
        assert_eq!(outbox.open().unwrap().state(), &State::default());
        outbox.open().unwrap().file(state(&["b"]), vec![mail("b", Kind::Begin)]).unwrap();
        assert_eq!(subjects(&outbox), ["begin a", "begin b"], "numbers go on after those of mails that wait");
    }
}

#[test]
fn a_state_cannot_name_a_file_outside_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(&dir.path().join("outbox"));
    fs::create_dir(outbox.dir()).unwrap();
    let mail = r#"{"id":"a","kind":"begin","subject":"s","body":"b"}"#;
    let state = format!(
        r#"{{"version":1,"next":18446744073709551615,"state":{{}},"unfiled":[["../x.mail",{mail}],["00000000000000000001-a/../../b.mail",{mail}]]}}"#
    );
    fs::write(outbox.dir().join(STATE), state).unwrap();
    outbox.open().unwrap().file(State::default(), vec![]).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn one_process_sends_at_a_time_and_others_file_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    let right = outbox.sending().unwrap().unwrap();
    assert!(Outbox::new(dir.path()).sending().unwrap().is_none());
    outbox.open().unwrap().file(State::default(), vec![mail("a", Kind::Note)]).unwrap();
    drop(right);
    assert!(outbox.sending().unwrap().is_some());
}

#[test]
fn a_lock_that_is_held_for_long_is_an_error_and_not_a_wait_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Outbox::new(dir.path());
    let _held = outbox.open().unwrap();
    let begun = Instant::now();
    assert!(matches!(Outbox::new(dir.path()).open(), Err(Error::Locked { .. })));
    assert!(begun.elapsed() < LOCK_EVERY * LOCK_TRIES + Duration::from_secs(5));
}
