//! x
use super::Frame;
/// A block of the ring in our hands; dropping it gives it back to the kernel.
#[derive(Debug)]
pub struct Block;
impl Block {
    /// The whole block.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &[]
    }
    /// Each frame.
    pub fn for_each_frame(&self, _each: impl FnMut(Frame<'_>)) {}
}
