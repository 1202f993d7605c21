/* Aligned buffers, Linux AIO and the scans of lease areas: all of paxoslease that is not Python.
 *
 * Every function takes explicit lengths and offsets, returns 0 (or a count) or -errno, keeps no
 * global state and never calls into Python. Only pl_buffer_map and pl_aio_open allocate. */
#ifndef PAXOSLEASE_ALIGNEDIO_H
#define PAXOSLEASE_ALIGNEDIO_H

#include <stddef.h>
#include <stdint.h>

/* Kinds of memory. Transparent huge pages come from what is free, reserved ones from those that the
 * administrator has set aside (vm.nr_hugepages), usually for guests. */
enum { PL_PAGES_SMALL = 0, PL_PAGES_TRANSPARENT = 1, PL_PAGES_RESERVED = 2 };

/* Map `bytes` of memory (a multiple of 2 MiB), aligned to 2 MiB and populated, and write its address
 * to *address. `want` is the best kind to try; what cannot be had is replaced by the next one below.
 * A child after fork does not have this memory. Nothing unmaps it: who still looks at it after its
 * use sees old bytes and not a fault. Returns the kind asked of the system, or -errno. */
int pl_buffer_map(size_t bytes, int want, void **address);

/* Return the unit of offsets and lengths that an open file asks for in direct I/O, in bytes; 0 when
 * the kernel or the file system does not say (before Linux 6.1, network file systems), -EOPNOTSUPP
 * when the file cannot be read directly, else -errno. */
int pl_direct_alignment(int fd);

/* One read or write. Filled in by the caller; `token` comes back in the completion. */
struct pl_request {
    uint64_t token;
    uint64_t offset;
    void *buffer;
    uint64_t bytes;
    int32_t fd;
    int32_t is_write;
};

/* One completion: bytes moved or -errno. */
struct pl_completion {
    uint64_t token;
    int64_t result;
};

/* Create an AIO context for `depth` requests in flight. Returns 0 or -errno. */
int pl_aio_open(unsigned depth, uint64_t *context);

/* Destroy a context; waits in the kernel until nothing is in flight. Returns 0 or -errno. */
int pl_aio_close(uint64_t context);

/* Submit `count` requests (at most 64); eventfd is signalled at each completion. Returns how many were
 * taken, which may be fewer than count, or -errno when none was. The buffers belong to the kernel
 * until their completion has been reaped. */
int pl_aio_submit(uint64_t context, int eventfd, const struct pl_request *requests, unsigned count);

/* Wait until `minimum` completions are there or timeout_ns (< 0: no limit) has passed, and write at
 * most `room` (at most 64) of them to `completions`. Returns how many, or -errno. */
int pl_aio_reap(uint64_t context, unsigned minimum, unsigned room, int64_t timeout_ns,
                struct pl_completion *completions);

/* Sleep until something has completed, wakefd (an eventfd too) was written to, or timeout_ns (< 0: no
 * limit) has passed; read both event counters empty; write at most `room` (at most 64) completions to
 * `completions`. One call for what an event loop does between two steps. Returns how many, which may
 * be none, or -errno. */
int pl_aio_wait(uint64_t context, int eventfd, int wakefd, unsigned room, int64_t timeout_ns,
                struct pl_completion *completions);

/* CRC32C with initial value 0xFFFFFFFE and no final inversion, as in lease records. */
uint32_t pl_crc32c(const void *data, size_t bytes);

/* The same, without the processor's instruction; for tests of the other. */
uint32_t pl_crc32c_portable(const void *data, size_t bytes);

/* What a scan says of a record. */
enum { PL_ZERO = 0, PL_GOOD = 1, PL_BAD = 2 };

/* Look at `count` records, `stride` bytes apart in the `area_bytes` at `area`. A record is PL_ZERO when
 * its first zero_bytes are zero; else PL_GOOD or PL_BAD by the CRC32C over its first crc_bytes, stored
 * little-endian at crc_offset. Writes one verdict per record. Returns how many are not zero, or
 * -EINVAL when the records do not lie within the area. */
int pl_scan(const void *area, size_t area_bytes, size_t count, size_t stride, size_t zero_bytes,
            size_t crc_bytes, size_t crc_offset, uint8_t *verdicts);

/* Where the columns of a lockspace area go: room for one element per record each. */
struct pl_columns {
    uint32_t *index; /* which record */
    uint64_t *owner_id;
    uint64_t *generation;
    uint64_t *timestamp;
    uint16_t *io_timeout;
    uint8_t *good; /* magic and space name are as expected */
    uint8_t *mark; /* the bitmap bit of one host is set */
};

/* Copy what the host table needs of those of `count` delta leases, `stride` bytes apart, that were ever
 * used (owner_id is not 0). `name` has 48 bytes, compared up to its first zero. mark_byte and mark_mask
 * name the bitmap bit (mark_mask 0: none). Returns how many were used, or -EINVAL when the records do
 * not lie within the area. */
int pl_delta_columns(const void *area, size_t area_bytes, size_t count, size_t stride, uint32_t magic,
                     const char *name, size_t mark_byte, uint8_t mark_mask,
                     const struct pl_columns *columns);

#endif
