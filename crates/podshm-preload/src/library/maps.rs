//! What of this process's attachments is still mapped, by /proc/self/maps: programs unmap, move and protect parts of them.

use super::sys::{self, FileId};

/// A mapped piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Piece {
    /// First byte.
    pub start: usize,
    /// Past the last.
    pub end: usize,
    /// `PROT_` bits.
    pub protection: usize,
    /// Where in the file it starts.
    pub offset: u64,
    /// The file.
    pub file: FileId,
}

/// Pieces found at once.
pub const BATCH: usize = 64;

/// Fills `found` with pieces that `wanted` accepts, in order of address, from `from` on. As many as fit; None where /proc
/// can't be read.
pub fn find(from: usize, found: &mut [Piece; BATCH], mut wanted: impl FnMut(&Piece) -> bool) -> Option<usize> {
    let file = sys::open(b"/proc/self/maps\0", sys::O_RDONLY | sys::O_CLOEXEC, 0).ok()?;
    let mut count = 0;
    let mut line = Line::default();
    let mut buffer = [0u8; 4096];
    loop {
        let read = sys::read(&file, &mut buffer).ok()?;
        if read == 0 {
            return Some(count);
        }
        for byte in &buffer[..read] {
            let Some(piece) = line.take(*byte) else { continue };
            if piece.start >= from && wanted(&piece) {
                found[count] = piece;
                count += 1;
                if count == BATCH {
                    return Some(count);
                }
            }
        }
    }
}

/// A line of maps, a byte at a time: `start-end rwxs offset major:minor inode path`.
#[derive(Default)]
struct Line {
    /// Fields that are complete.
    fields: usize,
    number: u64,
    /// Spaces may come several at a time before the path, which is not looked at.
    piece: Piece,
}

impl Line {
    fn take(&mut self, byte: u8) -> Option<Piece> {
        match byte {
            b'\n' => {
                if self.fields == 6 {
                    self.piece.file.inode = self.number;
                }
                return core::mem::take(self).piece_if_whole();
            }
            b'-' | b' ' | b':' if self.fields < 7 && !(self.fields == 2 && byte == b'-') => {
                let number = core::mem::take(&mut self.number);
                match self.fields {
                    0 => self.piece.start = number as usize,
                    1 => self.piece.end = number as usize,
                    3 => self.piece.offset = number,
                    4 => self.piece.file.device.0 = number as u32,
                    5 => self.piece.file.device.1 = number as u32,
                    6 => self.piece.file.inode = number,
                    _ => {}
                }
                self.fields += 1;
            }
            b'r' if self.fields == 2 => self.piece.protection |= sys::PROT_READ,
            b'w' if self.fields == 2 => self.piece.protection |= sys::PROT_WRITE,
            b'x' if self.fields == 2 => self.piece.protection |= sys::PROT_EXEC,
            _ if self.fields == 6 && byte.is_ascii_digit() => self.number = self.number * 10 + u64::from(byte - b'0'),
            b'0'..=b'9' if self.fields < 6 => self.number = self.number << 4 | u64::from(byte - b'0'),
            b'a'..=b'f' if self.fields < 6 => self.number = self.number << 4 | u64::from(byte - b'a' + 10),
            _ => {}
        }
        None
    }

    fn piece_if_whole(self) -> Option<Piece> {
        (self.fields >= 6).then_some(self.piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Piece> {
        let mut line = Line::default();
        text.bytes().filter_map(|byte| line.take(byte)).collect()
    }

    #[test]
    fn lines_are_read_whatever_their_path() {
        let text = "7f00abc00000-7f00abc01000 r-xs 00002000 fe:1a 1234567            /a b-c:d rw\n\
                    55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0 \n\
                    7ffd0000-7ffd1000 ---p 00000000 00:00 0                          [vdso]\n";
        let file = FileId { device: (0xfe, 0x1a), inode: 1_234_567 };
        let first = Piece { start: 0x7f00_abc0_0000, end: 0x7f00_abc0_1000, protection: 5, offset: 0x2000, file };
        let found = parse(text);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], first);
        assert_eq!((found[1].start, found[1].protection, found[1].file.inode), (0x55d0_c000_0000, 3, 0));
        assert_eq!(found[2].protection, 0);
    }

    #[test]
    fn this_very_function_is_mapped() {
        let here = this_very_function_is_mapped as fn() as usize;
        let mut found = [Piece::default(); BATCH];
        let count = find(0, &mut found, |piece| (piece.start..piece.end).contains(&here));
        assert_eq!(count, Some(1));
        assert_eq!(found[0].protection & sys::PROT_EXEC, sys::PROT_EXEC);
        assert_eq!(find(found[0].start + 1, &mut found, |piece| (piece.start..piece.end).contains(&here)), Some(0));
    }
}
