#include "alignedio.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

/* ---- checksums ----------------------------------------------------------------------------- */

#define INITIAL 0xFFFFFFFEu
#define CRC_BYTES ((size_t)4)

static uint32_t little32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t little64(const uint8_t *at)
{
    return (uint64_t)little32(at) | (uint64_t)little32(at + 4) << 32;
}

/* crc_of[k][n]: the checksum of the nibble n, followed by k more nibbles of zero. As the CRC is
 * linear, eight of these make a step of four bytes. Checked against its definition in
 * tests/unit/test_native.py. */
static const uint32_t crc_of[8][16] = {
    {0x00000000, 0x105EC76F, 0x20BD8EDE, 0x30E349B1, 0x417B1DBC, 0x5125DAD3, 0x61C69362, 0x7198540D,
     0x82F63B78, 0x92A8FC17, 0xA24BB5A6, 0xB21572C9, 0xC38D26C4, 0xD3D3E1AB, 0xE330A81A, 0xF36E6F75},
    {0x00000000, 0xF26B8303, 0xE13B70F7, 0x1350F3F4, 0xC79A971F, 0x35F1141C, 0x26A1E7E8, 0xD4CA64EB,
     0x8AD958CF, 0x78B2DBCC, 0x6BE22838, 0x9989AB3B, 0x4D43CFD0, 0xBF284CD3, 0xAC78BF27, 0x5E133C24},
    {0x00000000, 0x3FC5F181, 0x7F8BE302, 0x404E1283, 0xFF17C604, 0xC0D23785, 0x809C2506, 0xBF59D487,
     0xFBC3FAF9, 0xC4060B78, 0x844819FB, 0xBB8DE87A, 0x04D43CFD, 0x3B11CD7C, 0x7B5FDFFF, 0x449A2E7E},
    {0x00000000, 0x13A29877, 0x274530EE, 0x34E7A899, 0x4E8A61DC, 0x5D28F9AB, 0x69CF5132, 0x7A6DC945,
     0x9D14C3B8, 0x8EB65BCF, 0xBA51F356, 0xA9F36B21, 0xD39EA264, 0xC03C3A13, 0xF4DB928A, 0xE7790AFD},
    {0x00000000, 0x70A27D8A, 0xE144FB14, 0x91E6869E, 0xC76580D9, 0xB7C7FD53, 0x26217BCD, 0x56830647,
     0x8B277743, 0xFB850AC9, 0x6A638C57, 0x1AC1F1DD, 0x4C42F79A, 0x3CE08A10, 0xAD060C8E, 0xDDA47104},
    {0x00000000, 0xA541927E, 0x4F6F520D, 0xEA2EC073, 0x9EDEA41A, 0x3B9F3664, 0xD1B1F617, 0x74F06469,
     0x38513EC5, 0x9D10ACBB, 0x773E6CC8, 0xD27FFEB6, 0xA68F9ADF, 0x03CE08A1, 0xE9E0C8D2, 0x4CA15AAC},
    {0x00000000, 0xE964B13D, 0xD725148B, 0x3E41A5B6, 0xABA65FE7, 0x42C2EEDA, 0x7C834B6C, 0x95E7FA51,
     0x52A0C93F, 0xBBC47802, 0x8585DDB4, 0x6CE16C89, 0xF90696D8, 0x106227E5, 0x2E238253, 0xC747336E},
    {0x00000000, 0xDD45AAB8, 0xBF672381, 0x62228939, 0x7B2231F3, 0xA6679B4B, 0xC4451272, 0x1900B8CA,
     0xF64463E6, 0x2B01C95E, 0x49234067, 0x9466EADF, 0x8D665215, 0x5023F8AD, 0x32017194, 0xEF44DB2C},
};

uint32_t pl_crc32c_portable(const void *data, size_t bytes)
{
    const uint8_t *at = data;
    uint32_t crc = INITIAL;
    for (; bytes >= 4; bytes -= 4, at += 4) {
        crc ^= little32(at);
        crc = crc_of[7][crc & 15] ^ crc_of[6][crc >> 4 & 15] ^ crc_of[5][crc >> 8 & 15]
              ^ crc_of[4][crc >> 12 & 15] ^ crc_of[3][crc >> 16 & 15] ^ crc_of[2][crc >> 20 & 15]
              ^ crc_of[1][crc >> 24 & 15] ^ crc_of[0][crc >> 28];
    }
    while (bytes--) {
        crc ^= *at++;
        crc = crc >> 8 ^ crc_of[1][crc & 15] ^ crc_of[0][crc >> 4 & 15];
    }
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(const void *data, size_t bytes)
{
    const uint8_t *at = data;
    uint64_t crc = INITIAL;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        crc = _mm_crc32_u64(crc, word);
    }
    uint32_t rest = (uint32_t)crc;
    while (bytes--)
        rest = _mm_crc32_u8(rest, *at++);
    return rest;
}
#endif

uint32_t pl_crc32c(const void *data, size_t bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2"))
        return crc32c_sse42(data, bytes);
#endif
    return pl_crc32c_portable(data, bytes);
}

/* ---- scans --------------------------------------------------------------------------------- */

static int lies_within(size_t area_bytes, size_t count, size_t stride, size_t record_bytes)
{
    if (count == 0)
        return 1;
    if (record_bytes > area_bytes || stride == 0)
        return 0;
    return count - 1 <= (area_bytes - record_bytes) / stride;
}

/* All is zero if the first 16 bytes are and each byte is like the one 16 further on. memcmp has the
 * widest loads of the machine: for an empty area this takes half of the time of a loop of words. */
static int is_zero(const uint8_t *at, size_t bytes)
{
    uint64_t first[2];
    uint8_t any = 0;

    if (bytes >= sizeof first) {
        memcpy(first, at, sizeof first);
        if (first[0] | first[1])
            return 0;
        return memcmp(at, at + sizeof first, bytes - sizeof first) == 0;
    }
    while (bytes--)
        any |= *at++;
    return any == 0;
}

int pl_scan(const void *area, size_t area_bytes, size_t count, size_t stride, size_t zero_bytes,
            size_t crc_bytes, size_t crc_offset, uint8_t *verdicts)
{
    const uint8_t *record = area;
    size_t longest = zero_bytes > crc_bytes ? zero_bytes : crc_bytes;
    int found = 0;

    if (crc_offset > SIZE_MAX - CRC_BYTES)
        return -EINVAL;
    if (longest < crc_offset + CRC_BYTES)
        longest = crc_offset + CRC_BYTES;
    if (count > INT_MAX || !lies_within(area_bytes, count, stride, longest))
        return -EINVAL;
    for (size_t i = 0; i < count; i++, record += stride) {
        if (is_zero(record, zero_bytes)) {
            verdicts[i] = PL_ZERO;
            continue;
        }
        found++;
        int good = pl_crc32c(record, crc_bytes) == little32(record + crc_offset);
        verdicts[i] = good ? PL_GOOD : PL_BAD;
    }
    return found;
}

int pl_delta_columns(const void *area, size_t area_bytes, size_t count, size_t stride, uint32_t magic,
                     const char *name, size_t mark_byte, uint8_t mark_mask,
                     const struct pl_columns *columns)
{
    const uint8_t *record = area;
    int used = 0;

    if (count > INT_MAX || mark_byte >= 256 || !lies_within(area_bytes, count, stride, 512))
        return -EINVAL;
    for (size_t i = 0; i < count; i++, record += stride) {
        uint64_t owner_id = little64(record + 32);
        if (owner_id == 0) /* never used: its other cache lines need not be fetched */
            continue;
        columns->index[used] = (uint32_t)i;
        columns->owner_id[used] = owner_id;
        columns->generation[used] = little64(record + 40);
        columns->timestamp[used] = little64(record + 152);
        columns->io_timeout[used] = (uint16_t)(record[174] | record[175] << 8);
        columns->good[used] = little32(record) == magic
                              && strncmp((const char *)record + 56, name, 48) == 0;
        columns->mark[used] = (record[256 + mark_byte] & mark_mask) != 0;
        used++;
    }
    return used;
}
