#define _GNU_SOURCE
#include "alignedio.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)
#define BATCH 64

/* ---- buffers ------------------------------------------------------------------------------- */

int pl_buffer_map(size_t bytes, int want_huge, void **address)
{
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;

    if (bytes == 0 || bytes % HUGE_BYTES)
        return -EINVAL;
    if (want_huge) {
        void *huge = mmap(NULL, bytes, protection, flags | MAP_HUGETLB | MAP_POPULATE, -1, 0);
        if (huge != MAP_FAILED) {
            *address = huge;
            return PL_PAGES_HUGE;
        }
    }
    /* Map one huge page more than asked for and cut off what lies outside of the alignment. */
    char *start = mmap(NULL, bytes + HUGE_BYTES, protection, flags, -1, 0);
    if (start == MAP_FAILED)
        return -errno;
    size_t head = (HUGE_BYTES - (uintptr_t)start % HUGE_BYTES) % HUGE_BYTES;
    char *aligned = start + head;
    if (head && munmap(start, head))
        return -errno;
    if (munmap(aligned + bytes, HUGE_BYTES - head))
        return -errno;
    int pages = PL_PAGES_SMALL;
    if (want_huge && madvise(aligned, bytes, MADV_HUGEPAGE) == 0)
        pages = PL_PAGES_TRANSPARENT;
    /* A child that forks must not make the kernel's target copy-on-write under an I/O. */
    if (madvise(aligned, bytes, MADV_DONTFORK) && errno != EINVAL)
        return -errno;
    for (size_t i = 0; i < bytes; i += 4096)
        ((volatile char *)aligned)[i] = 0;
    *address = aligned;
    return pages;
}

int pl_buffer_unmap(void *address, size_t bytes)
{
    return munmap(address, bytes) ? -errno : 0;
}

/* ---- asynchronous I/O ---------------------------------------------------------------------- */

int pl_aio_open(unsigned depth, uint64_t *context)
{
    aio_context_t made = 0;
    if (syscall(SYS_io_setup, depth, &made) < 0)
        return -errno;
    *context = made;
    return 0;
}

int pl_aio_close(uint64_t context)
{
    return syscall(SYS_io_destroy, (aio_context_t)context) < 0 ? -errno : 0;
}

int pl_aio_submit(uint64_t context, int eventfd, const struct pl_request *requests, unsigned count)
{
    struct iocb blocks[BATCH];
    struct iocb *pointers[BATCH];

    if (count > BATCH)
        return -EINVAL;
    memset(blocks, 0, count * sizeof blocks[0]);
    for (unsigned i = 0; i < count; i++) {
        blocks[i].aio_data = requests[i].token;
        blocks[i].aio_lio_opcode = requests[i].is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
        blocks[i].aio_fildes = (uint32_t)requests[i].fd;
        blocks[i].aio_buf = (uintptr_t)requests[i].buffer;
        blocks[i].aio_nbytes = requests[i].bytes;
        blocks[i].aio_offset = (int64_t)requests[i].offset;
        blocks[i].aio_flags = IOCB_FLAG_RESFD;
        blocks[i].aio_resfd = (uint32_t)eventfd;
        pointers[i] = &blocks[i];
    }
    long taken = syscall(SYS_io_submit, (aio_context_t)context, (long)count, pointers);
    return taken < 0 ? -errno : (int)taken;
}

int pl_aio_reap(uint64_t context, unsigned minimum, unsigned room, int64_t timeout_ns,
                struct pl_completion *completions)
{
    struct io_event events[BATCH];
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};

    if (room > BATCH)
        room = BATCH;
    long found = syscall(SYS_io_getevents, (aio_context_t)context, (long)minimum, (long)room, events,
                         timeout_ns < 0 ? NULL : &limit);
    if (found < 0)
        return -errno;
    for (long i = 0; i < found; i++) {
        completions[i].token = events[i].data;
        completions[i].result = events[i].res;
    }
    return (int)found;
}

/* ---- checksums ----------------------------------------------------------------------------- */

#define INITIAL 0xFFFFFFFEu

static uint32_t step_bits(uint32_t crc)
{
    for (int bit = 0; bit < 8; bit++)
        crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1)));
    return crc;
}

uint32_t pl_crc32c_portable(const void *data, size_t bytes)
{
    const uint8_t *at = data;
    uint32_t crc = INITIAL;
    while (bytes--)
        crc = step_bits(crc ^ *at++);
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

static int is_zero(const uint8_t *at, size_t bytes)
{
    uint64_t any = 0;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        any |= word;
        if (any)
            return 0;
    }
    while (bytes--)
        any |= *at++;
    return any == 0;
}

static uint32_t little32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t little64(const uint8_t *at)
{
    return (uint64_t)little32(at) | (uint64_t)little32(at + 4) << 32;
}

int pl_scan(const void *area, size_t area_bytes, size_t count, size_t stride, size_t zero_bytes,
            size_t crc_bytes, size_t crc_offset, uint8_t *verdicts)
{
    const uint8_t *record = area;
    size_t longest = zero_bytes > crc_bytes ? zero_bytes : crc_bytes;
    int found = 0;

    if (longest < crc_offset + 4)
        longest = crc_offset + 4;
    if (!lies_within(area_bytes, count, stride, longest))
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

    if (mark_byte >= 256 || !lies_within(area_bytes, count, stride, 512))
        return -EINVAL;
    for (size_t i = 0; i < count; i++, record += stride) {
        columns->owner_id[i] = little64(record + 32);
        columns->generation[i] = little64(record + 40);
        columns->timestamp[i] = little64(record + 152);
        columns->io_timeout[i] = (uint16_t)(record[174] | record[175] << 8);
        columns->good[i] = little32(record) == magic
                           && strncmp((const char *)record + 56, name, 48) == 0;
        columns->mark[i] = (record[256 + mark_byte] & mark_mask) != 0;
    }
    return 0;
}
