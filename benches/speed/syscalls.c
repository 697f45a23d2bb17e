/* Does some operations many times and prints what each cost, in microseconds. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void report(const char *what, double started, int count)
{
	printf("%s\t%.3f\n", what, (now() - started) / count);
	fflush(stdout);
}

static char *self;

static void getppids(int count)
{
	for (int i = 0; i < count; i++)
		syscall(SYS_getppid);
}

static void pipes(int count)
{
	int fds[2];
	char byte = 0;

	if (pipe(fds))
		return;
	for (int i = 0; i < count; i++)
		if (write(fds[1], &byte, 1) != 1 || read(fds[0], &byte, 1) != 1)
			return;
}

static void faults(int count)
{
	size_t size = (size_t)count * 4096;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return;
	madvise(memory, size, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < size; at += 4096)
		memory[at] = 1;
	munmap(memory, size);
}

static void forks(int count)
{
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
}

static void execs(int count)
{
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();

		if (!pid) {
			execl(self, self, "true", NULL);
			_exit(1);
		}
		waitpid(pid, NULL, 0);
	}
}

static void measure(const char *what, void (*operation)(int), int count)
{
	double started;

	operation(count / 10);
	started = now();
	operation(count);
	report(what, started, count);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return strcmp(argv[1], "true") != 0;
	self = argv[0];
	measure("getppid", getppids, 20000);
	measure("pipe write+read", pipes, 10000);
	measure("page fault", faults, 5000);
	measure("fork+exit+wait", forks, 200);
	measure("fork+exec of true", execs, 100);
	return 0;
}
