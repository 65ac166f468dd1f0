//! What earlier agents left unfinished is made whole, beside everything else.
//! In: the segments that were there at the start. Out: the uploader's leave to send each, or word of why it cannot be made whole.
//! Never: gives one up; lets one that cannot be read, or a defect, stand in the way of the others; acts on files as they once were.

use std::time::Duration;

use tokio::task;
use tokio::time::{sleep, timeout};

use crate::spool::{self, Folder, Segment, salvage};
use crate::upload::Reserved;

/// What could not be made whole is tried again this often: the disk was full, or answers again.
const AGAIN: Duration = Duration::from_secs(3600);

/// How long a leaving agent may take over what it could not write.
const OURS_MAX: Duration = Duration::from_secs(20);

/// How a segment is made whole: [`spool::salvage::make_whole`].
pub(super) type MakeWhole = fn(&Folder, &Segment) -> Result<(), spool::Error>;

/// Makes all of them whole, however often it takes.
pub(super) async fn finish_all(folder: &Folder, mut unfinished: Vec<Segment>, reserved: &Reserved, make_whole: MakeWhole) {
    loop {
        unfinished = finish(folder, unfinished, reserved, make_whole).await;
        if unfinished.is_empty() {
            return;
        }
        sleep(AGAIN).await;
    }
}

/// Makes whole what this agent's own writer could not, as no next agent will: its files are closed. For a bounded time only, as the rest
/// of the spool is to be sent.
pub(super) async fn finish_ours(folder: &Folder, reserved: &Reserved) {
    let mut unfinished = folder.segments().unwrap_or_else(|error| {
        tracing::error!(%error, "what could not be written is not looked for");
        Vec::new()
    });
    unfinished.retain(|segment| segment.manifest.is_none() && !reserved.is_reserved(segment));
    if timeout(OURS_MAX, finish(folder, unfinished, reserved, salvage::make_whole)).await.is_err() {
        tracing::error!("what could not be written is still not whole after {OURS_MAX:?}");
    }
}

/// Tries each once, and releases it to the uploader when it is whole. Gives those that are not.
pub(super) async fn finish(folder: &Folder, unfinished: Vec<Segment>, reserved: &Reserved, make_whole: MakeWhole) -> Vec<Segment> {
    let all = unfinished.len();
    let mut left = Vec::new();
    for segment in unfinished {
        let (folder, capture_id) = (folder.clone(), segment.capture_id.clone());
        let done = task::spawn_blocking(move || finish_one(&folder, &capture_id, make_whole)).await;
        let cause = match done {
            Ok(Ok(())) => {
                reserved.release(&segment.capture_id);
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(died) => format!("what makes it whole died ({died}); this is a defect, please report the log lines before this one"),
        };
        reserved.refuse(&segment.capture_id, cause);
        left.push(segment);
    }
    if left.len() < all {
        tracing::info!(segments = all - left.len(), "segments of an earlier agent are whole again");
    }
    left
}

/// Makes one whole of the files that lie there now: since it was listed a person may have brought some, or taken them away.
fn finish_one(folder: &Folder, capture_id: &str, make_whole: MakeWhole) -> Result<(), spool::Error> {
    let segment = folder.segments()?.into_iter().find(|segment| segment.capture_id == capture_id);
    // One that an earlier try made whole, and then failed, is the uploader's.
    segment.filter(|segment| segment.manifest.is_none()).map_or(Ok(()), |segment| make_whole(folder, &segment))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use super::*;
    use crate::spool::{OnFull, Settings};

    fn segment(capture_id: &str) -> Segment {
        Segment { capture_id: capture_id.into(), data: None, journal: None, draft: None, manifest: None, failing: None }
    }

    /// A folder with journals of these segments, and the segments.
    fn folder(ids: &[&str]) -> (tempfile::TempDir, Folder, Vec<Segment>) {
        let dir = tempfile::tempdir().unwrap();
        let (path, max_bytes) = (dir.path().to_path_buf(), 1 << 20);
        let settings = Settings { dir: path, max_bytes, on_full: OnFull::DropNewest, flush_ms: 1, sync_ms: 1, allow_root_device: true };
        let folder = Folder::open(&settings).unwrap();
        ids.iter().for_each(|id| fs::write(folder.path(id, "journal"), "").unwrap());
        let segments = folder.segments().unwrap();
        (dir, folder, segments)
    }

    #[tokio::test]
    async fn one_that_cannot_be_made_whole_and_one_whose_salvage_dies_are_told_of_and_do_not_stop_the_others() {
        let (_dir, folder, unfinished) = folder(&["a", "b", "c", "d"]);
        let reserved = Reserved::new(&unfinished);
        let left = finish(&folder, unfinished, &reserved, |_, segment| match segment.capture_id.as_str() {
            "a" => panic!("a defect"),
            "c" => Err(spool::Error::InUse { dir: "c".into() }),
            _ => Ok(()),
        });
        let left: Vec<_> = left.await.into_iter().map(|segment| segment.capture_id).collect();
        assert_eq!(left, ["a", "c"]);
        let why = ["a", "b", "c", "d"].map(|id| reserved.why_unfinished(&segment(id)).unwrap_or_default());
        assert!(why[0].contains("defect") && why[1].is_empty() && why[2].contains("another agent") && why[3].is_empty(), "{why:?}");
    }

    #[tokio::test]
    async fn each_is_made_whole_of_the_files_that_lie_there_by_then_and_what_went_or_is_whole_is_left_alone() {
        static SEEN: Mutex<Vec<Segment>> = Mutex::new(Vec::new());
        let (_dir, folder, unfinished) = folder(&["brought", "went", "whole"]);
        let reserved = Reserved::new(&unfinished);
        // Hours later.
        fs::write(folder.path("brought", "pcap"), "bytes").unwrap();
        fs::remove_file(folder.path("went", "journal")).unwrap();
        fs::write(folder.path("whole", "manifest"), "{}").unwrap();
        let left = finish(&folder, unfinished.clone(), &reserved, |_, segment| {
            SEEN.lock().unwrap().push(segment.clone());
            Ok(())
        });
        assert_eq!(left.await, []);
        let [seen] = <[Segment; 1]>::try_from(std::mem::take(&mut *SEEN.lock().unwrap())).unwrap();
        assert_eq!((seen.capture_id.as_str(), seen.data), ("brought", Some(folder.path("brought", "pcap"))));
        assert!(unfinished.iter().all(|segment| !reserved.is_reserved(segment)));
    }
}
