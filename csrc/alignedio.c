#define _GNU_SOURCE
#include "alignedio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)
#define SMALL_BYTES ((size_t)4096)
#define BATCH 64

/* ---- buffers ------------------------------------------------------------------------------- */

/* Map ordinary pages, aligned to a huge page: one more than asked for, then cut to the alignment. */
static void *map_aligned(size_t bytes)
{
    char *start = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    if (start == MAP_FAILED)
        return MAP_FAILED;
    size_t head = (HUGE_BYTES - (uintptr_t)start % HUGE_BYTES) % HUGE_BYTES;
    /* Cutting the ends off cannot fail: it splits no mapping in two. */
    if (head)
        munmap(start, head);
    munmap(start + head + bytes, HUGE_BYTES - head);
    return start + head;
}

int pl_buffer_map(size_t bytes, int want, void **address)
{
    char *start = MAP_FAILED;
    int pages = PL_PAGES_SMALL;

    if (bytes == 0 || bytes % HUGE_BYTES || want < PL_PAGES_SMALL || want > PL_PAGES_RESERVED)
        return -EINVAL;
    if (want == PL_PAGES_RESERVED) {
        start = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
        pages = PL_PAGES_RESERVED;
    }
    if (start == MAP_FAILED) {
        start = map_aligned(bytes);
        if (start == MAP_FAILED)
            return -errno;
        pages = want != PL_PAGES_SMALL && madvise(start, bytes, MADV_HUGEPAGE) == 0
                    ? PL_PAGES_TRANSPARENT
                    : PL_PAGES_SMALL;
    }
    /* Were it shared with a child after fork, a write to the page would move ours away from under
     * the I/O in flight. The child has no such memory; direct.py gives it a pool of its own. */
    if (madvise(start, bytes, MADV_DONTFORK)) {
        int error = errno;
        munmap(start, bytes);
        return -error;
    }
    for (size_t i = 0; i < bytes; i += SMALL_BYTES)
        ((volatile char *)start)[i] = 0;
    *address = start;
    return pages;
}

/* ---- files --------------------------------------------------------------------------------- */

int pl_direct_alignment(int fd)
{
    /* struct statx, as words: headers older than Linux 6.1 do not have the fields of direct I/O. */
    enum { MASK = 0, OFFSET_ALIGN = 39, DIOALIGN = 0x2000, WORDS = 64 };
    uint32_t words[WORDS] = {0};

    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, words) < 0)
        return errno == ENOSYS || errno == EPERM ? 0 : -errno;
    if (!(words[MASK] & DIOALIGN))
        return 0;
    return words[OFFSET_ALIGN] ? (int)words[OFFSET_ALIGN] : -EOPNOTSUPP;
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

/* Empty an eventfd that does not block; an empty one is no error. */
static int drain(int fd)
{
    uint64_t count;
    if (read(fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return -errno;
    return 0;
}

int pl_aio_wait(uint64_t context, int eventfd, int wakefd, unsigned room, int64_t timeout_ns,
                struct pl_completion *completions)
{
    struct pollfd fds[2] = {{.fd = eventfd, .events = POLLIN}, {.fd = wakefd, .events = POLLIN}};
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};

    int ready = ppoll(fds, 2, timeout_ns < 0 ? NULL : &limit, NULL);
    if (ready < 0)
        return errno == EINTR ? 0 : -errno;
    if (fds[1].revents) {
        int failed = drain(wakefd);
        if (failed)
            return failed;
    }
    if (!fds[0].revents)
        return 0;
    int failed = drain(eventfd);
    if (failed)
        return failed;
    int found;
    do /* the counter is empty now, so nobody would come back for what is there */
        found = pl_aio_reap(context, 0, room, 0, completions);
    while (found == -EINTR);
    return found;
}
