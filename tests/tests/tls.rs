//! The uploader behind TLS, as S3 is: a handshake costs more processor time than a small request, and few are made.
//! In: `faulty_s3` behind TLS on loopback, spool folders made by hand, the real program. Out: handshakes and calls, counted.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;

use tapfleet::record::facts::Kind;
use tapfleet::upload::permits::PARTS_MAX;
use tapfleet_tests::agent::Settings;
use tapfleet_tests::faulty_s3::script::{Fault, Op};
use tapfleet_tests::faulty_s3::{FaultyS3, SECRET};
use tapfleet_tests::segments::{BUCKET, Segment, files, id, pattern};
use tapfleet_tests::tls::Tls;

/// Segments of two parts each.
const SEGMENTS: u64 = 12;
const BYTES: usize = (8 << 20) + 4321;

/// More handshakes than that are not for requests that are on their way at once: parts of [`PARTS_MAX`] segments, their creations and
/// completions, status and manifests. Twice as many, as a connection may end between two of them.
const HANDSHAKES_MAX: u32 = 2 * (PARTS_MAX + 4);

/// Sends a spool of segments with `tapfleetd spool upload`, and gives how many calls S3 had.
async fn upload(server: &FaultyS3, tls: &Tls, dir: &Path) -> u32 {
    let bytes = pattern(BYTES);
    for number in 1..=SEGMENTS {
        let key = format!("i-0123456789abcdef0/2026-11-22-00-15_{number:04}.pcap");
        let segment = Segment::new(&dir.join("spool"), id(number), key, Kind::Capture);
        segment.open();
        segment.append(&bytes);
        segment.close();
    }
    let settings = Settings::new(&tls.endpoint(), &dir.join("spool"))
        .set("s3.bucket", BUCKET)
        .variable("AWS_SECRET_ACCESS_KEY", SECRET)
        .variable("SSL_CERT_FILE", tls.certificate().to_str().unwrap());
    let folder = dir.to_owned();
    let (code, said) = tokio::task::spawn_blocking(move || settings.command(None, &folder, &["spool", "upload"])).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(files(&dir.join("spool")), [] as [String; 0]);
    let captures = server.objects().objects.values().filter(|object| object.content.bytes == BYTES as u64).count();
    assert_eq!(captures as u64, SEGMENTS);
    server.all_calls()
}

async fn bench() -> (tempfile::TempDir, FaultyS3, Tls) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("spool")).unwrap();
    let server = FaultyS3::start(BUCKET).await;
    let tls = Tls::before(server.port(), dir.path()).await;
    (dir, server, tls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_kept_for_the_requests_that_follow() {
    let (dir, server, tls) = bench().await;
    let calls = upload(&server, &tls, dir.path()).await;
    let (full, resumed) = (tls.full(), tls.resumed());
    println!("{calls} calls, {full} full handshakes, {resumed} resumed");
    assert!((1..=HANDSHAKES_MAX).contains(&(full + resumed)) && calls >= 4 * (full + resumed), "{full} and {resumed} for {calls} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_s3_ended_is_followed_by_one_that_resumes_its_session() {
    let (dir, server, tls) = bench().await;
    for op in [Op::HeadBucket, Op::Head, Op::HeadManifest, Op::Create, Op::Part, Op::Complete, Op::PutManifest, Op::Put] {
        server.fail(op, 1..=u32::MAX, Fault::EndConnection);
    }
    let calls = upload(&server, &tls, dir.path()).await;
    let (full, resumed) = (tls.full(), tls.resumed());
    println!("{calls} calls, {full} full handshakes, {resumed} resumed");
    assert!(full <= HANDSHAKES_MAX && resumed >= 2 * full, "{full} and {resumed} for {calls} calls");
}
