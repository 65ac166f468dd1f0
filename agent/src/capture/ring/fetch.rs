//! In: bytes that will be read soon. Out: nothing; the processor begins to fetch them. Never: waits for memory, reads a byte, fails.
//! Spec: Intel 64 and IA-32 Architectures Software Developer's Manual, `PREFETCHh`; Arm Architecture Reference Manual, `PRFM`.
#![allow(unsafe_code)]

/// What memory moves in.
const CACHE_LINE_BYTES: usize = 64;

/// Has the processor fetch the bytes, while who calls goes on.
pub(super) fn ahead(bytes: &[u8]) {
    bytes.chunks(CACHE_LINE_BYTES).for_each(line);
}

#[cfg(target_arch = "x86_64")]
fn line(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint; it reads nothing that the program sees, and faults at no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) };
}

#[cfg(target_arch = "aarch64")]
fn line(bytes: &[u8]) {
    // SAFETY: a hint; it reads nothing that the program sees, changes no register or flag, and faults at no address.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{address}]", address = in(reg) bytes.as_ptr(), options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn line(_: &[u8]) {}
