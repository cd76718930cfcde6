//! Little-endian numbers and variable-length ones, written to and taken from slices.

/// Takes numbers off the front of a slice; `None` once it is too short.
#[derive(Debug, Clone, Copy)]
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    #[inline]
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// An unsigned LEB128 number of at most 64 bits in its shortest form.
    #[inline]
    pub(super) fn varint(&mut self) -> Option<u64> {
        // Nearly all of them have one to three bytes.
        let (value, rest) = match self.0 {
            [a @ ..0x80, rest @ ..] => (u64::from(*a), rest),
            [a, b @ 1..0x80, rest @ ..] => (u64::from(a & 0x7f) | u64::from(*b) << 7, rest),
            [a, b @ 0x80..=0xff, c @ 1..0x80, rest @ ..] => {
                (u64::from(a & 0x7f) | u64::from(b & 0x7f) << 7 | u64::from(*c) << 14, rest)
            }
            _ => return self.long_varint(),
        };
        self.0 = rest;
        Some(value)
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // A last byte of zero is a longer spelling of a shorter number.
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }

    /// A signed number, zigzag-mapped onto an unsigned one.
    #[inline]
    pub(super) fn zigzag(&mut self) -> Option<i64> {
        let z = self.varint()?;
        Some((z >> 1).cast_signed() ^ -((z & 1).cast_signed()))
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// How many bytes a number takes.
pub(super) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros()).div_ceil(7) as usize
}

pub(super) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn varints_are_spelt_as_the_format_says() {
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let spelt: [(u64, &[u8]); 8] = [
            (0, &[0]),
            (1, &[1]),
            (0x7f, &[0x7f]),
            (0x80, &[0x80, 0x01]),
            (300, &[0xac, 0x02]),
            (0x4000, &[0x80, 0x80, 0x01]),
            (1 << 63, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]),
            (u64::MAX, &most),
        ];
        for (value, bytes) in spelt {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!((&*out, varint_len(value)), (bytes, bytes.len()), "{value}");
            let mut take = Take(bytes);
            assert_eq!((take.varint(), take.0), (Some(value), [].as_slice()));
            assert_eq!(Take(&bytes[..bytes.len() - 1]).varint(), None, "{value} cut");
        }
        let (mut above, mut longer) = (most, most);
        (above[9], longer[9]) = (0x02, 0x81);
        let refused: [&[u8]; 5] = [&[0x80, 0x00], &[0xff, 0x00], &above, &longer, &[0xff; 11]];
        for bytes in refused {
            assert_eq!(Take(bytes).varint(), None, "{bytes:x?}");
        }
    }

    #[test]
    fn signed_numbers_lie_between_the_unsigned_ones() {
        for (signed, unsigned) in
            [(0, 0), (-1, 1), (1, 2), (-2, 3), (63, 126), (i64::MAX, u64::MAX - 1), (i64::MIN, u64::MAX)]
        {
            let (mut one, mut other) = (Vec::new(), Vec::new());
            put_zigzag(&mut one, signed);
            put_varint(&mut other, unsigned);
            assert_eq!(one, other, "{signed}");
            assert_eq!(Take(&one).zigzag(), Some(signed));
        }
    }

    #[test]
    fn numbers_are_taken_from_the_front_and_lowest_byte_first() {
        let bytes: Vec<u8> = (1..=25).collect();
        let mut take = Take(&bytes);
        assert_eq!((take.u8(), take.u16(), take.u32()), (Some(1), Some(0x0302), Some(0x0706_0504)));
        assert_eq!(take.u64(), Some(0x0f0e_0d0c_0b0a_0908));
        assert_eq!(take.array(), Some([16, 17]));
        assert_eq!((take.bytes(3), take.0), (Some([18, 19, 20].as_slice()), &bytes[20..]));
        assert_eq!((take.bytes(0), take.bytes(6), take.u64()), (Some([].as_slice()), None, None));
        assert_eq!(take.bytes(5), Some([21, 22, 23, 24, 25].as_slice()));
        assert_eq!((take.u8(), take.u16(), take.u32(), take.i64()), (None, None, None, None));
        assert_eq!(Take(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).i64(), Some(-2));
    }

    proptest! {
        #[test]
        fn numbers_come_back(u: u64, i: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, u);
            prop_assert_eq!(varint_len(u), out.len());
            put_zigzag(&mut out, i);
            let mut take = Take(&out);
            prop_assert_eq!(take.varint(), Some(u));
            prop_assert_eq!(take.zigzag(), Some(i));
            prop_assert!(take.0.is_empty());
        }

        #[test]
        fn every_accepted_spelling_is_the_shortest(bytes: [u8; 11]) {
            let mut take = Take(&bytes);
            if let Some(value) = take.varint() {
                let mut again = Vec::new();
                put_varint(&mut again, value);
                prop_assert_eq!(&bytes[..11 - take.0.len()], &again[..]);
            }
        }
    }
}
