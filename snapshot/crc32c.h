// SPDX-License-Identifier: Apache-2.0
//
// CRC32C (Castagnoli) as Go, Java, S3 and GCS know it: crc32c(0, "123456789", 9) == 0xe3069283.
// crc is that of the bytes before, 0 at the start.
#pragma once

#include <isa-l/crc.h>
#include <stddef.h>
#include <stdint.h>

static inline uint32_t crc32c(uint32_t crc, const void *bytes, size_t n)
{
    unsigned char *at = (unsigned char *)bytes; // isa-l forgot const
    crc = ~crc;
    while (n > 0) {
        const int piece = n < 1 << 30 ? (int)n : 1 << 30;
        crc = crc32_iscsi(at, piece, crc);
        at += piece;
        n -= (size_t)piece;
    }
    return ~crc;
}

// a b modulo the CRC polynomial; bit 31 is x^0.
static inline uint32_t crc32c_multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (a & bit)
            product ^= b;
        b = b & 1 ? b >> 1 ^ 0x82f63b78u : b >> 1;
    }
    return product;
}

// The CRC of two runs of bytes from the CRC of each: the first is shifted by the n bytes of the
// second, a multiplication by x^8n. So a file's checksum follows from those of its chunks, and the
// bytes are read once.
static inline uint32_t crc32c_combine(uint32_t first, uint32_t second, uint64_t n)
{
    uint32_t shift = 1u << 31, square = 1u << 23; // x^0, x^8
    for (; n > 0; n >>= 1) {
        if (n & 1)
            shift = crc32c_multiply(shift, square);
        square = crc32c_multiply(square, square);
    }
    return crc32c_multiply(shift, first) ^ second;
}
