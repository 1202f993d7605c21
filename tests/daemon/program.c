/*
 * A program as Debian's users write them: linked with libsanlock, which it tells what it holds.
 *
 * program LOCKSPACE PATH RESOURCE OFFSET
 *
 * Each line on stdin is a word, the step to take; each step prints "<word> <result>".
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sanlock.h>
#include <sanlock_admin.h>
#include <sanlock_resource.h>

static struct sanlk_lockspace space;
static struct sanlk_resource *resource;
static int sock = -1;

static int acquire(uint32_t flags)
{
	struct sanlk_options options;

	memset(&options, 0, sizeof(options));
	strncpy(options.owner_name, "program", SANLK_NAME_LEN);
	return sanlock_acquire(sock, -1, flags, 1, &resource, &options);
}

static int inquire(char *text, size_t size)
{
	char *state = NULL;
	int count = 0;
	int result = sanlock_inquire(sock, -1, 0, &count, &state);

	snprintf(text, size, " %d %s", count, state ? state : "-");
	free(state);
	return result;
}

static int convert(uint32_t flags)
{
	resource->flags = flags;
	return sanlock_convert(sock, -1, 0, resource);
}

static int lvb(char *text, size_t size)
{
	char value[512] = "";
	int result = sanlock_get_lvb(0, resource, value, sizeof(value) - 1);

	snprintf(text, size, " %s", value);
	return result;
}

static int hosts(char *text, size_t size)
{
	struct sanlk_host *seen = NULL;
	int count = 0;
	int result = sanlock_get_hosts(space.name, 0, &seen, &count, 0);

	snprintf(text, size, " %d", count);
	free(seen);
	return result;
}

static int step(const char *word, char *text, size_t size)
{
	if (!strcmp(word, "register"))
		return (sock = sanlock_register()) < 0 ? sock : 0;
	if (!strcmp(word, "join"))
		return sanlock_add_lockspace_timeout(&space, 0, 1);
	if (!strcmp(word, "restrict"))
		return sanlock_restrict(sock, SANLK_RESTRICT_SIGTERM);
	if (!strcmp(word, "killpath"))
		return sanlock_killpath(sock, SANLK_KILLPATH_PID, "/bin/true", "with words");
	if (!strcmp(word, "acquire"))
		return acquire(SANLK_ACQUIRE_LVB);
	if (!strcmp(word, "inquire"))
		return inquire(text, size);
	if (!strcmp(word, "share"))
		return convert(SANLK_RES_SHARED);
	if (!strcmp(word, "exclude"))
		return convert(0);
	if (!strcmp(word, "write"))
		return sanlock_set_lvb(0, resource, "a value", 8);
	if (!strcmp(word, "read"))
		return lvb(text, size);
	if (!strcmp(word, "hosts"))
		return hosts(text, size);
	if (!strcmp(word, "release"))
		return sanlock_release(sock, -1, 0, 1, &resource);
	if (!strcmp(word, "leave"))
		return sanlock_rem_lockspace(&space, 0);
	return 1;
}

int main(int argc, char **argv)
{
	char word[32];

	if (argc != 5)
		return 2;
	resource = calloc(1, sizeof(*resource) + sizeof(struct sanlk_disk));
	if (!resource)
		return 2;
	strncpy(space.name, argv[1], SANLK_NAME_LEN);
	space.host_id = 1;
	strncpy(space.host_id_disk.path, argv[2], SANLK_PATH_LEN - 1);
	strncpy(resource->lockspace_name, argv[1], SANLK_NAME_LEN);
	strncpy(resource->name, argv[3], SANLK_NAME_LEN);
	resource->num_disks = 1;
	strncpy(resource->disks[0].path, argv[2], SANLK_PATH_LEN - 1);
	resource->disks[0].offset = strtoull(argv[4], NULL, 10);

	while (scanf("%31s", word) == 1) {
		char text[4096] = "";
		int result = step(word, text, sizeof(text));

		printf("%s %d%s\n", word, result, text);
		fflush(stdout);
	}
	free(resource);
	return 0;
}
