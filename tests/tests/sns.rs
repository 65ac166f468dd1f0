//! Promise 5 against an SNS that checks subjects, sizes and topics as AWS does: what the agent publishes is taken, each trouble's
//! mails arrive as they were worded, in order, and a topic that is not there is said.
//! Needs: moto.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use tapfleet::alert::fold::{Kind, Losses, News};
use tapfleet::alert::mail::{BODY_MAX, SUBJECT_MAX};
use tapfleet::alert::rules::Trouble;
use tapfleet::alert::{self, Mail, Notifier, Place, Sns};
use tapfleet::host::clock::SECOND_NS;
use tapfleet_tests::moto::Moto;

const REGION: &str = "eu-north-1";
/// 2026-11-22T00:15:00Z.
const BEGUN_NS: u64 = 1_795_306_500 * SECOND_NS;

fn shared(moto: &Moto) -> SdkConfig {
    let credentials = Credentials::new("test", "test", None, None, "tests");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(moto.endpoint())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

async fn topic(moto: &Moto) -> (String, aws_sdk_sns::Client) {
    let client = aws_sdk_sns::Client::new(&shared(moto));
    (client.create_topic().name("alerts").send().await.unwrap().topic_arn.unwrap(), client)
}

fn place(instance: &str) -> Place {
    let said = |text: &str| Some(text.to_owned());
    Place { instance: instance.into(), region: said(REGION), zone: said("eu-north-1a"), group: None, account: said("123456789012") }
}

fn settings(topic_arn: &str, dir: &Path) -> alert::Settings {
    alert::Settings {
        topic_arn: Some(topic_arn.into()),
        silence: None,
        drop_ratio: 0.001,
        repeat: Duration::from_secs(3600),
        on_start: false,
        dir: dir.into(),
        spool_max_bytes: 0,
        window: Duration::from_secs(900),
    }
}

#[tokio::test]
async fn every_mail_of_every_trouble_is_taken_and_arrives_as_it_was_worded_in_order() {
    let moto = Moto::start();
    let (arn, _) = topic(&moto).await;
    let sns = Sns::with_config(&arn, shared(&moto));
    let mut sent = Vec::new();
    for trouble in Trouble::ALL {
        for kind in [Kind::Begin, Kind::Repeat, Kind::Over] {
            let id = format!("{}-i-1-x", trouble.name());
            let (at_ns, detail) = (BEGUN_NS + 4000 * SECOND_NS, "what was seen".to_owned());
            let news =
                News { trouble, kind, id, since_ns: BEGUN_NS, at_ns, detail, losses: Losses { kernel: 3, spool: 0 }, lasted_ns: None };
            // An instance's name as long as it may be: the subject is as long as it gets.
            let mail = Mail::of(&news, &place(&"i".repeat(64)));
            sns.publish(&mail).await.unwrap_or_else(|error| panic!("{trouble:?} {kind:?}: {error}\n{mail:?}"));
            sent.push((mail.subject, mail.body));
        }
    }
    let published = moto.published(&arn);
    assert_eq!(published, sent);
    assert!(published.iter().any(|(subject, _)| subject.len() >= SUBJECT_MAX - 1), "no subject was near the limit");
    for (subject, body) in &published {
        assert!(subject.len() < 100 && subject.is_ascii(), "{subject}");
        for words in ["2026-11-22 00:15:00 UTC", REGION, "eu-north-1a", "123456789012", "Trouble:   "] {
            assert!(body.contains(words), "no '{words}' in {body}");
        }
    }
}

#[tokio::test]
async fn the_service_refuses_the_subject_that_ours_is_kept_from_being() {
    let moto = Moto::start();
    let (arn, client) = topic(&moto).await;
    let long = "s".repeat(101);
    let refused = client.publish().topic_arn(&arn).subject(&long).message("m").send().await;
    assert!(refused.is_err(), "the service takes any subject, so these tests show nothing");
    let sns = Sns::with_config(&arn, shared(&moto));
    sns.publish(&Mail::new("x", Kind::Note, &long, &"m".repeat(4 * BODY_MAX))).await.unwrap();
    let [(subject, body)] = moto.published(&arn).try_into().unwrap();
    assert_eq!((subject.as_str(), body.len()), (&long[..SUBJECT_MAX], BODY_MAX));
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_said_with_what_to_do_and_the_mail_waits() {
    let moto = Moto::start();
    let arn = format!("arn:aws:sns:{REGION}:123456789012:nowhere");
    let sns = Arc::new(Sns::with_config(&arn, shared(&moto)));
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&arn, dir.path());
    let error = alert::note(&settings, &place("i-1"), "words", "more words", sns.clone()).await.unwrap_err().to_string();
    for words in [arn.as_str(), "NotFound", "make the topic", "waits in the outbox"] {
        assert!(error.contains(words), "no '{words}' in {error}");
    }
    // Somebody makes it: what waited is sent with the next mail, before it.
    let (arn, client) = topic(&moto).await;
    client.subscribe().topic_arn(&arn).protocol("email").endpoint("people@example.net").send().await.unwrap();
    let sns = Arc::new(Sns::with_config(&arn, shared(&moto)));
    alert::test(&self::settings(&arn, dir.path()), &place("i-1"), sns).await.unwrap();
    let subjects: Vec<_> = moto.published(&arn).into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, ["words", "tapfleet TEST i-1"]);
}
