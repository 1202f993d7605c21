/* A watchdog device where there is none: preloaded, it answers for /dev/watchdog*.
 *
 * Opening one connects to the socket that FAKE_WATCHDOG names, where fake_watchdog.py plays the
 * kernel's side; the descriptor is that connection. So whatever happens to a descriptor happens to
 * the device as it would in a kernel: 'V' written to it arrives, and the device is closed with the
 * last copy, whoever has it, in whatever way he ends. An ioctl is a message, with the moment of the
 * call, and its answer.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct message {
	uint32_t call;  /* the ioctl's number; 0 for open */
	int32_t value;  /* what it is called with; in an answer: what it gives */
	int32_t error;  /* of an answer: errno or 0 */
	int32_t pid;
	int64_t at_ns;  /* CLOCK_MONOTONIC */
};

static int kernel_address(struct sockaddr_un *address)
{
	const char *path = getenv("FAKE_WATCHDOG");

	if (!path || strlen(path) >= sizeof(address->sun_path))
		return -1;
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path, path);
	return 0;
}

/* Ask the kernel's side; returns what it gives, or -1 with errno. */
static int ask(int fd, uint32_t call, int value)
{
	struct timespec now;
	struct message message = { .call = call, .value = value, .pid = getpid() };

	clock_gettime(CLOCK_MONOTONIC, &now);
	message.at_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
	if (send(fd, &message, sizeof(message), MSG_NOSIGNAL) != sizeof(message) ||
	    recv(fd, &message, sizeof(message), 0) != sizeof(message)) {
		errno = EIO;
		return -1;
	}
	if (message.error) {
		errno = message.error;
		return -1;
	}
	return message.value;
}

static int open_device(int flags)
{
	struct sockaddr_un address;
	int kind = SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0);
	int fd, error;

	if (kernel_address(&address) < 0) {
		errno = ENOENT;
		return -1;
	}
	fd = socket(AF_UNIX, kind, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || ask(fd, 0, 0) < 0) {
		error = errno == ECONNREFUSED ? ENXIO : errno;
		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int is_watchdog(const char *path)
{
	return !strncmp(path, "/dev/watchdog", strlen("/dev/watchdog"));
}

static int open_any(int directory, const char *path, int flags, mode_t mode)
{
	if (is_watchdog(path))
		return open_device(flags);
	return syscall(SYS_openat, directory, path, flags, mode);
}

static int is_device(int fd)
{
	struct sockaddr_un device, peer;
	socklen_t length = sizeof(peer);

	memset(&peer, 0, sizeof(peer));
	return !kernel_address(&device) && !getpeername(fd, (struct sockaddr *)&peer, &length) &&
	       peer.sun_family == AF_UNIX && !strcmp(peer.sun_path, device.sun_path);
}

static mode_t mode_of(int flags, va_list rest)
{
	return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                \
	int name(const char *path, int flags, ...)                \
	{                                                         \
		va_list rest;                                     \
		mode_t mode;                                      \
								  \
		va_start(rest, flags);                            \
		mode = mode_of(flags, rest);                      \
		va_end(rest);                                     \
		return open_any(AT_FDCWD, path, flags, mode);     \
	}

#define OPENAT(name)                                              \
	int name(int directory, const char *path, int flags, ...) \
	{                                                         \
		va_list rest;                                     \
		mode_t mode;                                      \
								  \
		va_start(rest, flags);                            \
		mode = mode_of(flags, rest);                      \
		va_end(rest);                                     \
		return open_any(directory, path, flags, mode);    \
	}

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* wdmd looks whether it is there before it opens it. */
int stat(const char *path, struct stat *found)
{
	return fstatat(AT_FDCWD, is_watchdog(path) ? "/dev/null" : path, found, 0);
}

int ioctl(int fd, unsigned long call, ...)
{
	int saved = errno, got;
	va_list rest;
	void *argument;

	va_start(rest, call);
	argument = va_arg(rest, void *);
	va_end(rest);
	if (_IOC_TYPE(call) != WATCHDOG_IOCTL_BASE || !is_device(fd)) {
		errno = saved;
		return syscall(SYS_ioctl, fd, call, argument);
	}
	got = ask(fd, call, call == WDIOC_SETTIMEOUT ? *(int *)argument : 0);
	if (got < 0)
		return -1;
	if (call == WDIOC_GETSUPPORT) {
		memset(argument, 0, sizeof(struct watchdog_info));
		((struct watchdog_info *)argument)->options = got;
	} else if (call == WDIOC_GETTIMEOUT || call == WDIOC_SETTIMEOUT) {
		*(int *)argument = got;
	}
	errno = saved;
	return 0;
}
