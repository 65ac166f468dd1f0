//! When to record: weekly times in a named time zone.
//! In: rules such as `Mon-Fri 08:00-18:00 Europe/Berlin`; a stamp. Out: on or off.
//! Never: a rule without a zone. On the days of a clock change the wall clock decides: an hour that does not exist is not
//! recorded, an hour that comes twice is recorded twice.

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike, Weekday};
use chrono_tz::Tz;

/// Nanoseconds in a minute; rules begin and end on whole minutes.
const MINUTE_NS: u64 = 60_000_000_000;

/// Minutes in a day.
const DAY_MINUTES: u16 = 24 * 60;

/// What a rule must look like.
const FORM: &str = "'<days> <HH:MM>-<HH:MM> <time zone>', as in 'Mon-Fri 08:00-18:00 Europe/Berlin', 'Sat,Sun 00:00-24:00 UTC' or \
                    'daily 22:00-06:00 America/New_York'";

/// One weekly time.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    /// Monday first.
    days: [bool; 7],
    /// Minutes of the day; `end` not after `start` means that it ends on the next day.
    start: u16,
    end: u16,
    zone: Tz,
}

/// Rules of which at least one must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    rules: Vec<Rule>,
    /// The minute last asked for, and its answer.
    last: Option<(u64, bool)>,
}

impl Schedule {
    /// The schedule of `rules`; `None` when there are none: always on.
    ///
    /// # Errors
    /// A sentence for each rule that cannot be understood.
    pub fn parse(rules: &[String]) -> Result<Option<Self>, Vec<String>> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for text in rules {
            match Rule::parse(text) {
                Ok(rule) => good.push(rule),
                Err(cause) => bad.push(format!("'{text}': {cause}; expected {FORM}")),
            }
        }
        match (good.is_empty(), bad.is_empty()) {
            (_, false) => Err(bad),
            (true, true) => Ok(None),
            (false, true) => Ok(Some(Self { rules: good, last: None })),
        }
    }

    /// Whether a frame stamped `time_ns` is to be recorded. Looked up once a minute of stamps.
    pub fn is_on(&mut self, time_ns: u64) -> bool {
        let minute = time_ns / MINUTE_NS;
        match self.last {
            Some((last, on)) if last == minute => on,
            _ => {
                let on = self.rules.iter().any(|rule| rule.is_on(minute));
                self.last = Some((minute, on));
                on
            }
        }
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[days, times, zone] = words.as_slice() else { return Err(format!("{} words instead of three", words.len())) };
        let (start, end) = times.split_once('-').ok_or_else(|| format!("'{times}' is not a time span"))?;
        let (start, end) = (minute_of_day(start)?, minute_of_day(end)?);
        if start == end || start == DAY_MINUTES {
            return Err(format!("'{times}' is empty; a whole day is 00:00-24:00"));
        }
        let zone = zone.parse().map_err(|_| format!("'{zone}' is not a time zone of the IANA database"))?;
        Ok(Self { days: weekdays(days)?, start, end, zone })
    }

    fn is_on(&self, utc_minute: u64) -> bool {
        let Some(utc) = i64::try_from(utc_minute).ok().and_then(|m| DateTime::from_timestamp(m.checked_mul(60)?, 0)) else {
            return false;
        };
        let local: NaiveDateTime = utc.with_timezone(&self.zone).naive_local();
        let minute = (local.hour() * 60 + local.minute()) as u16;
        let today = self.on_day(local.weekday());
        if self.start < self.end {
            return today && (self.start..self.end).contains(&minute);
        }
        (today && minute >= self.start) || (self.on_day(local.weekday().pred()) && minute < self.end)
    }

    fn on_day(&self, day: Weekday) -> bool {
        self.days.get(day.num_days_from_monday() as usize).copied().unwrap_or(false)
    }
}

fn minute_of_day(text: &str) -> Result<u16, String> {
    let wrong = || format!("'{text}' is not a time from 00:00 to 24:00");
    let (hour, minute) = text.split_once(':').ok_or_else(wrong)?;
    let two_digits = |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<u16>().ok()).flatten();
    let (hour, minute) = (two_digits(hour).ok_or_else(wrong)?, two_digits(minute).ok_or_else(wrong)?);
    let minutes = hour * 60 + minute;
    if minute < 60 && minutes <= DAY_MINUTES { Ok(minutes) } else { Err(wrong()) }
}

fn weekdays(text: &str) -> Result<[bool; 7], String> {
    if text == "daily" {
        return Ok([true; 7]);
    }
    let index = |name: &str| -> Result<usize, String> {
        let day: Weekday = name.parse().map_err(|_| format!("'{name}' is not a day of the week"))?;
        Ok(day.num_days_from_monday() as usize)
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (index(first)?, index(last)?);
        // 'Sat-Mon' goes over the end of the week.
        let count = (last + 7 - first) % 7 + 1;
        for n in 0..count {
            if let Some(day) = days.get_mut((first + n) % 7) {
                *day = true;
            }
        }
    }
    Ok(days)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn on(rules: &[&str], utc: &str) -> bool {
        let rules: Vec<String> = rules.iter().map(|&rule| rule.into()).collect();
        let time = DateTime::parse_from_rfc3339(utc).unwrap().timestamp() as u64;
        Schedule::parse(&rules).unwrap().unwrap().is_on(time * 1_000_000_000)
    }

    #[test]
    fn a_rule_holds_on_its_days_from_its_start_to_before_its_end() {
        let office = ["Mon-Fri 08:00-18:00 Europe/Berlin"];
        // Monday 2026-11-23; Berlin is UTC+1 in winter.
        assert!(!on(&office, "2026-11-23T06:59:59Z"));
        assert!(on(&office, "2026-11-23T07:00:00Z"));
        assert!(on(&office, "2026-11-23T16:59:59Z"));
        assert!(!on(&office, "2026-11-23T17:00:00Z"));
        assert!(!on(&office, "2026-11-22T12:00:00Z"), "a Sunday");
    }

    #[test]
    fn a_rule_may_end_on_the_next_day_and_the_week_may_wrap() {
        let night = ["Sat-Mon 22:00-06:00 UTC"];
        assert!(on(&night, "2026-11-22T23:00:00Z") && on(&night, "2026-11-24T05:59:00Z"));
        assert!(!on(&night, "2026-11-24T22:00:00Z") && !on(&night, "2026-11-22T12:00:00Z"));
        assert!(!on(&night, "2026-11-21T05:00:00Z"), "Friday's night is not in it");
        assert!(on(&["Sun 00:00-24:00 UTC"], "2026-11-22T23:59:59Z"));
    }

    #[test]
    fn when_clocks_go_forward_the_missing_hour_is_not_recorded() {
        // Berlin, 2026-03-29: 02:00 becomes 03:00 at 01:00 UTC.
        let rule = ["daily 02:30-03:30 Europe/Berlin"];
        assert!(!on(&rule, "2026-03-29T00:59:00Z"));
        assert!(on(&rule, "2026-03-29T01:00:00Z") && on(&rule, "2026-03-29T01:29:00Z"));
        assert!(!on(&rule, "2026-03-29T01:30:00Z"));
    }

    #[test]
    fn when_clocks_go_back_the_hour_that_comes_twice_is_recorded_twice() {
        // Berlin, 2026-10-25: 03:00 becomes 02:00 at 01:00 UTC.
        let rule = ["daily 02:00-03:00 Europe/Berlin"];
        for utc in ["2026-10-25T00:00:00Z", "2026-10-25T00:59:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:59:00Z"] {
            assert!(on(&rule, utc), "{utc}");
        }
        assert!(!on(&rule, "2026-10-25T02:00:00Z") && !on(&rule, "2026-10-24T23:59:00Z"));
    }

    #[test]
    fn each_wrong_rule_gets_a_sentence_that_says_what_is_allowed() {
        let wrong = [
            "Mon 08:00-18:00",
            "Mon 8:00-18:00 UTC",
            "Mun 08:00-18:00 UTC",
            "Mon 08:00-18:00 Berlin",
            "Mon 24:01-18:00 UTC",
            "Mon 08:00-08:00 UTC",
        ];
        let rules: Vec<String> = wrong.iter().map(|&rule| rule.into()).collect();
        let errors = Schedule::parse(&rules).unwrap_err();
        assert_eq!(errors.len(), wrong.len());
        assert!(errors.iter().all(|error| error.contains("Europe/Berlin")));
        assert_eq!(Schedule::parse(&[]), Ok(None));
    }
}
