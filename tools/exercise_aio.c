/* Uses every function of the C helper once and more, also at its edges; see check_c.py. */
#define _GNU_SOURCE
#include "alignedio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define HUGE ((size_t)2 << 20)

/* Nothing there, a wake-up, a completion, a descriptor that is none. */
static void exercise_wait(uint64_t context, int event, const struct pl_request *requests,
                          struct pl_completion *done)
{
    int wake = eventfd(0, EFD_NONBLOCK);
    uint64_t one = 1;

    CHECK(wake >= 0 && fcntl(event, F_SETFL, O_NONBLOCK) == 0);
    CHECK(read(event, &one, sizeof one) >= 0 || errno == EAGAIN);
    CHECK(pl_aio_wait(context, event, wake, 64, 1000000, done) == 0);
    one = 1;
    CHECK(write(wake, &one, sizeof one) == sizeof one);
    CHECK(pl_aio_wait(context, event, wake, 64, -1, done) == 0);
    CHECK(read(wake, &one, sizeof one) < 0 && errno == EAGAIN);
    CHECK(pl_aio_submit(context, event, requests, 1) == 1);
    CHECK(pl_aio_wait(context, event, wake, 64, -1, done) == 1 && done[0].result == 4096);
    CHECK(pl_aio_wait(context, event, wake, 64, 0, done) == 0);
    close(wake);
    CHECK(pl_aio_wait(context, event, wake, 64, -1, done) == -EBADF);
}

static void exercise_io(const char *path)
{
    void *buffer;
    uint64_t context;
    struct pl_request requests[64];
    struct pl_completion done[64];
    int fd = open(path, O_RDWR | O_DIRECT | O_DSYNC);
    int event = eventfd(0, 0);

    CHECK(fd >= 0 && event >= 0);
    CHECK(pl_direct_alignment(fd) == 0 || pl_direct_alignment(fd) >= 512);
    CHECK(pl_direct_alignment(-1) == -EBADF);
    CHECK(pl_buffer_map(HUGE, PL_PAGES_SMALL, &buffer) == PL_PAGES_SMALL);
    CHECK((uintptr_t)buffer % HUGE == 0 && munmap(buffer, HUGE) == 0);
    CHECK(pl_buffer_map(4096, PL_PAGES_TRANSPARENT, &buffer) == -EINVAL);
    CHECK(pl_buffer_map(0, PL_PAGES_TRANSPARENT, &buffer) == -EINVAL);
    CHECK(pl_buffer_map(HUGE, PL_PAGES_RESERVED + 1, &buffer) == -EINVAL);
    CHECK(pl_buffer_map((size_t)1 << 62, PL_PAGES_RESERVED, &buffer) < 0);
    CHECK(pl_buffer_map(HUGE, PL_PAGES_RESERVED, &buffer) >= 0 && munmap(buffer, HUGE) == 0);
    CHECK(pl_buffer_map(HUGE, PL_PAGES_TRANSPARENT, &buffer) >= 0);
    CHECK((uintptr_t)buffer % HUGE == 0);
    memset(buffer, 0xA5, HUGE);
    CHECK(pl_aio_open(64, &context) == 0);
    for (unsigned i = 0; i < 64; i++)
        requests[i] = (struct pl_request){.token = i, .offset = i * 4096u, .fd = fd, .is_write = 1,
                                          .buffer = (char *)buffer + i * 4096, .bytes = 4096};
    CHECK(pl_aio_submit(context, event, requests, 65) == -EINVAL);
    unsigned submitted = 0;
    while (submitted < 64) {
        int taken = pl_aio_submit(context, event, requests + submitted, 64 - submitted);
        CHECK(taken > 0);
        submitted += (unsigned)taken;
    }
    for (int reaped = 0; reaped < 64;) {
        int found = pl_aio_reap(context, 1, 64, -1, done);
        CHECK(found > 0);
        for (int i = 0; i < found; i++)
            CHECK(done[i].result == 4096 && done[i].token < 64);
        reaped += found;
    }
    CHECK(pl_aio_reap(context, 1, 64, 1000000, done) == 0);
    exercise_wait(context, event, requests, done);
    memset(buffer, 0, HUGE);
    requests[0].is_write = 0;
    requests[0].bytes = 64 * 4096;
    CHECK(pl_aio_submit(context, event, requests, 1) == 1);
    CHECK(pl_aio_reap(context, 1, 64, -1, done) == 1 && done[0].result == 64 * 4096);
    for (size_t i = 0; i < 64 * 4096; i++)
        CHECK(((uint8_t *)buffer)[i] == 0xA5);
    requests[0].fd = -1;
    CHECK(pl_aio_submit(context, event, requests, 1) == -EBADF);
    CHECK(pl_aio_close(context) == 0);
    CHECK(munmap(buffer, HUGE) == 0);
    close(event);
    close(fd);
}

static void exercise_scans(void)
{
    enum { COUNT = 10, STRIDE = 512 };
    uint8_t *area = calloc(COUNT, STRIDE);
    uint8_t verdicts[COUNT];
    uint32_t index[COUNT];
    uint64_t owner[COUNT], generation[COUNT], timestamp[COUNT];
    uint16_t io_timeout[COUNT];
    uint8_t good[COUNT], mark[COUNT];
    struct pl_columns columns = {index, owner, generation, timestamp, io_timeout, good, mark};
    char name[48] = "LS";
    const size_t bytes = COUNT * STRIDE;

    CHECK(area != NULL);
    CHECK(pl_crc32c(area, 48) == 0xCB5AD842u && pl_crc32c_portable(area, 48) == 0xCB5AD842u);
    for (size_t n = 0; n < 64; n++)
        CHECK(pl_crc32c(area + 1, n) == pl_crc32c_portable(area + 1, n));
    area[(COUNT - 1) * STRIDE] = 1;
    CHECK(pl_scan(area, bytes, COUNT, STRIDE, 144, 48, 48, verdicts) == 1);
    CHECK(verdicts[0] == PL_ZERO && verdicts[COUNT - 1] == PL_BAD);
    CHECK(pl_scan(area, bytes, COUNT + 1, STRIDE, 144, 48, 48, verdicts) == -EINVAL);
    CHECK(pl_scan(area, bytes, 2, STRIDE, bytes + 1, 48, 48, verdicts) == -EINVAL);
    CHECK(pl_scan(area, bytes, SIZE_MAX, STRIDE, 144, 48, 48, verdicts) == -EINVAL);
    CHECK(pl_scan(area, bytes, 1, STRIDE, 144, 48, SIZE_MAX, verdicts) == -EINVAL);
    CHECK(pl_scan(area, bytes, 1, STRIDE, 144, 48, bytes - 3, verdicts) == -EINVAL);
    CHECK(pl_scan(area, bytes, 1, STRIDE, 144, 48, bytes - 4, verdicts) >= 0);
    CHECK(pl_scan(area, 0, 0, STRIDE, 144, 48, 48, verdicts) == 0);
    CHECK(pl_delta_columns(area, bytes, COUNT, STRIDE, 1, name, 255, 1, &columns) == 0);
    area[(COUNT - 1) * STRIDE + 32] = 7;
    area[(COUNT - 1) * STRIDE + 511] = 1;
    CHECK(pl_delta_columns(area, bytes, COUNT, STRIDE, 1, name, 255, 1, &columns) == 1);
    CHECK(index[0] == COUNT - 1 && owner[0] == 7 && !good[0] && mark[0]);
    CHECK(pl_delta_columns(area, bytes - 1, COUNT, STRIDE, 1, name, 0, 1, &columns) == -EINVAL);
    CHECK(pl_delta_columns(area, bytes, COUNT, STRIDE, 1, name, 256, 1, &columns) == -EINVAL);
    free(area);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    exercise_io(argv[1]);
    exercise_scans();
    return 0;
}
