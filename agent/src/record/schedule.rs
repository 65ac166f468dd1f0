//! Stub.
/// Stub.
#[derive(Clone, Debug)]
pub struct Schedule;

impl Schedule {
    /// Stub: refuses what has no time of day in it.
    ///
    /// # Errors
    /// One per entry that is not understood.
    pub fn parse(entries: &[String]) -> Result<Self, Vec<String>> {
        let wrong: Vec<String> = entries.iter().filter(|e| !e.contains(':')).map(|e| format!("'{e}' is not understood")).collect();
        if wrong.is_empty() { Ok(Self) } else { Err(wrong) }
    }
}
