//! Root of `libpodshm-preload.so`; see `build.rs`.
#![no_std]

mod library;
mod wire;

use core::arch::global_asm;

/// The index and arithmetic checks that remain end here: one line, then SIGILL, with the program's own core dump.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    library::log::panicked()
}

// Named by the unwind tables of the precompiled core; nothing unwinds here, so nobody calls it.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl rust_eh_personality", ".hidden rust_eh_personality", "rust_eh_personality: ud2");
#[cfg(target_arch = "aarch64")]
global_asm!(".globl rust_eh_personality", ".hidden rust_eh_personality", "rust_eh_personality: udf #0");

// What the compiler calls for copies. Hidden: the program keeps its libc's.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp, strlen",
    ".hidden memcpy, memmove, memset, memcmp, bcmp, strlen",
    "memmove: mov rax, rdi; mov rcx, rdx; mov r8, rdi; sub r8, rsi; cmp r8, rdx; jb 2f; rep movsb; ret",
    "2: lea rsi, [rsi + rdx - 1]; lea rdi, [rdi + rdx - 1]; std; rep movsb; cld; ret",
    "memcpy: mov rax, rdi; mov rcx, rdx; rep movsb; ret",
    "memset: mov r8, rdi; mov eax, esi; mov rcx, rdx; rep stosb; mov rax, r8; ret",
    "bcmp:",
    "memcmp: xor eax, eax; mov rcx, rdx; test rcx, rcx; jz 3f; repe cmpsb; je 3f",
    "movzx eax, byte ptr [rdi - 1]; movzx ecx, byte ptr [rsi - 1]; sub eax, ecx",
    "3: ret",
    "strlen: xor eax, eax",
    "4: cmp byte ptr [rdi + rax], 0; je 5f; inc rax; jmp 4b",
    "5: ret",
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp, strlen",
    ".hidden memcpy, memmove, memset, memcmp, bcmp, strlen",
    "memcpy:",
    "memmove: mov x3, x0; sub x4, x0, x1; cmp x4, x2; b.lo 3f",
    "2: cbz x2, 5f; ldrb w4, [x1], #1; strb w4, [x3], #1; sub x2, x2, #1; b 2b",
    "3: add x1, x1, x2; add x3, x3, x2",
    "4: cbz x2, 5f; ldrb w4, [x1, #-1]!; strb w4, [x3, #-1]!; sub x2, x2, #1; b 4b",
    "5: ret",
    "memset: mov x3, x0",
    "6: cbz x2, 7f; strb w1, [x3], #1; sub x2, x2, #1; b 6b",
    "7: ret",
    "bcmp:",
    "memcmp: cbz x2, 8f; ldrb w3, [x0], #1; ldrb w4, [x1], #1; sub x2, x2, #1; cmp w3, w4; b.eq memcmp; sub w0, w3, w4; ret",
    "8: mov w0, #0; ret",
    "strlen: mov x1, x0",
    "9: ldrb w2, [x1], #1; cbnz w2, 9b; sub x0, x1, x0; sub x0, x0, #1; ret",
);
