//! Decodes the Huffman code of HPACK (RFC 7541 §5.2).
//! Which text does a compressed string represent?

use super::CompressionError;

/// The lengths of the codes of all octets and of EOS, in bits (RFC 7541 Appendix B).
static CODE_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
const CODE_LENGTH_MAX: usize = 30;
const EOS: usize = 256;

/// The decoding tables. The code is canonical: codes of one length are consecutive numbers, in the order of their
/// symbols.
struct Huffman {
    /// The first code of each length, and the index of its symbol.
    first: [(u32, usize); CODE_LENGTH_MAX + 2],
    symbols: [u16; 257],
    /// The symbol and the length of its code for each value of the next eight bits; length 0: the code is longer.
    short: [(u8, u8); 256],
}

static HUFFMAN: Huffman = {
    let (mut first, mut symbols) = ([(0_u32, 0_usize); CODE_LENGTH_MAX + 2], [0_u16; 257]);
    let mut short = [(0_u8, 0_u8); 256];
    let (mut length, mut code, mut count) = (1, 0_u32, 0);
    while length <= CODE_LENGTH_MAX {
        first[length] = (code, count);
        let mut symbol = 0;
        while symbol < 257 {
            if CODE_LENGTHS[symbol] as usize == length {
                symbols[count] = symbol as u16;
                count += 1;
                if length <= 8 {
                    let (mut bits, end) = ((code << (8 - length)) as usize, ((code + 1) << (8 - length)) as usize);
                    while bits < end {
                        short[bits] = (symbol as u8, length as u8);
                        bits += 1;
                    }
                }
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    first[CODE_LENGTH_MAX + 1] = (0, count);
    Huffman { first, symbols, short }
};

impl Huffman {
    /// Returns the first symbol of the bits, and the length of its code.
    fn symbol(&self, bits: u32) -> (usize, usize) {
        let (symbol, length) = self.short[(bits >> (CODE_LENGTH_MAX - 8)) as usize];
        if length > 0 {
            return (usize::from(symbol), usize::from(length));
        }
        for length in 9..CODE_LENGTH_MAX {
            let ((first, start), (_, end)) = (self.first[length], self.first[length + 1]);
            let offset = (bits >> (CODE_LENGTH_MAX - length)).checked_sub(first);
            if let Some(symbol) = offset.map(|offset| start + offset as usize).filter(|symbol| *symbol < end) {
                return (usize::from(self.symbols[symbol]), length);
            }
        }
        let (first, start) = self.first[CODE_LENGTH_MAX];
        (usize::from(self.symbols[start + (bits - first) as usize]), CODE_LENGTH_MAX)
    }
}

pub(super) fn decompress(bytes: &[u8]) -> Result<Vec<u8>, CompressionError> {
    let mut text = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut rest, mut buffer, mut count) = (bytes.iter(), 0_u64, 0_usize);
    loop {
        while count <= 56
            && let Some(byte) = rest.next()
        {
            buffer = buffer << 8 | u64::from(*byte);
            count += 8;
        }
        // Missing bits are ones, like padding (RFC 7541 §5.2).
        let bits = match count.checked_sub(CODE_LENGTH_MAX) {
            Some(surplus) => buffer >> surplus,
            None => (buffer << (CODE_LENGTH_MAX - count)) | ((1 << (CODE_LENGTH_MAX - count)) - 1),
        };
        let (symbol, length) = HUFFMAN.symbol((bits & ((1 << CODE_LENGTH_MAX) - 1)) as u32);
        if length > count {
            break;
        }
        if symbol == EOS {
            return Err(CompressionError);
        }
        text.push(symbol as u8);
        count -= length;
    }
    // The remaining bits are padding: a prefix of the code of EOS, which is all ones (RFC 7541 §5.2).
    let ones = (1_u64 << count) - 1;
    if count < 8 && buffer & ones == ones { Ok(text) } else { Err(CompressionError) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::hex;
    use super::*;

    /// RFC 7541 Appendix C.6.1: dates and URLs, compressed.
    #[test]
    fn huffman_code_is_that_of_the_rfc() {
        assert_eq!(
            decompress(&hex("d07abe941054d444a8200595040b8166e082a62d1bff")).unwrap(),
            b"Mon, 21 Oct 2013 20:13:21 GMT"
        );
        assert_eq!(decompress(&hex("9d29ad171863c78f0b97c8e9ae82ae43d3")).unwrap(), b"https://www.example.com");
        for broken in ["ff", "ffffffff", "1c"] {
            assert_eq!(decompress(&hex(broken)), Err(CompressionError), "{broken}: padding must be at most seven ones");
        }
    }
}
