"""What `sanlock help` prints."""

from __future__ import annotations

from typing import Final

USAGE: Final = b"""Usage:
sanlock <command> <action> ...

commands:
  daemon        run the lease daemon
  client        ask the daemon for something (taken when no command is given)
  direct        work on the storage itself, without the daemon
  help          print this text (defaults in parentheses)
  version       print the version

sanlock daemon [options]
  -D            stay in the foreground, log everything to stderr
  -Q 0|1        taken and shown in the status; refusals are logged either way (1)
  -R 0|1        taken and shown in the status; client renewal has what it would log (0)
  -H <num>      renewals kept in the history of a lockspace (180)
  -L <pri>      syslog priority up to which the log file gets lines, -1 for none (4)
  -S <pri>      syslog priority up to which syslog gets lines, -1 for none (3)
  -U <user>     user to run as
  -G <group>    group to run as
  -t <num>      taken and shown in the status; there are no worker threads to limit (8)
  -g <sec>      time for a graceful end of processes in recovery (40)
  -w 0|1        use the watchdog through wdmd (1)
  -h 0|1        use real-time scheduling (0)
  -l <num>      lock memory: 0 none, 1 current, 2 current and future (1)
  -o <sec>      I/O time-out of lockspaces that do not say their own (10)
  -b <sec>      how long a notification bit stays in the delta lease
                (6 times the I/O time-out)
  -e <name>     host name in delta leases (a new uuid)

sanlock client <action> [options]
sanlock client status [-D] [-o p|s]
sanlock client gets [-h 0|1]
sanlock client host_status -s LOCKSPACE [-D]
sanlock client renewal -s LOCKSPACE
sanlock client set_event -s LOCKSPACE -i <host_id> [-g gen] -e <event> -d <data>
sanlock client set_config -s LOCKSPACE [-u 0|1] [-O 0|1]
sanlock client log_dump
sanlock client shutdown [-f 0|1] [-w 0|1]
sanlock client init -s LOCKSPACE | -r RESOURCE [-z 0|1] [-Z 512|4096 -A 1M|2M|4M|8M]
sanlock client read -s LOCKSPACE | -r RESOURCE [-D] [-h 0|1]
sanlock client align -s LOCKSPACE
sanlock client add_lockspace -s LOCKSPACE [-o <sec>]
sanlock client inq_lockspace -s LOCKSPACE
sanlock client rem_lockspace -s LOCKSPACE
sanlock client command -r RESOURCE -c <path> <args>
sanlock client acquire -r RESOURCE -p <pid>
sanlock client convert -r RESOURCE -p <pid>
sanlock client release -r RESOURCE -p <pid>
sanlock client inquire -p <pid>
sanlock client request -r RESOURCE -f <force_mode>
sanlock client examine -r RESOURCE | -s LOCKSPACE
sanlock client format -x RINDEX [-Z 512|4096 -A 1M|2M|4M|8M]
sanlock client create -x RINDEX -e <resource_name>
sanlock client delete -x RINDEX -e <resource_name>[:<offset>]
sanlock client lookup -x RINDEX [-e <resource_name>:<offset>]
sanlock client update -x RINDEX -e <resource_name>[:<offset>] [-z 1]
sanlock client rebuild -x RINDEX

sanlock direct <action> [-a 0|1] [-o <sec>] [-Z 512|4096 -A 1M|2M|4M|8M]
sanlock direct init -s LOCKSPACE | -r RESOURCE
sanlock direct read_leader -s LOCKSPACE | -r RESOURCE
sanlock direct write_leader -s LOCKSPACE | -r RESOURCE -F <file> [-f 0|1]
sanlock direct dump <path>[:<offset>[:<size>]] [-f 0|1|2]
sanlock direct next_free <path>[:<offset>] -Z 512|4096 -A 1M|2M|4M|8M
sanlock direct acquire_id | renew_id | release_id -s LOCKSPACE [-e <name>]
sanlock direct acquire | release -r RESOURCE -i <host_id> -g <gen>
sanlock direct format -x RINDEX
sanlock direct lookup -x RINDEX [-e <resource_name>:<offset>]
sanlock direct update -x RINDEX -e <resource_name>[:<offset>] [-z 1]
sanlock direct rebuild -x RINDEX

LOCKSPACE = <lockspace_name>:<host_id>:<path>:<offset>
  <lockspace_name>  name of the lockspace
  <host_id>         number of this host in the lockspace
  <path>            where the leases are
  <offset>          where on the path, in bytes

RESOURCE = <lockspace_name>:<resource_name>:<path>:<offset>[:<lver>]
  <lockspace_name>  name of the lockspace
  <resource_name>   name of the resource
  <path>            where the lease is
  <offset>          where on the path, in bytes
  <lver>            a version of the lease, or SH to share it

RINDEX = <lockspace_name>:<path>:<offset>
  <lockspace_name>  name of the lockspace
  <path>            where the leases are
  <offset>          where on the path, in bytes

Limits:
sector and align sizes that go together: 512/1M, 4K/1M, 4K/2M, 4K/4M, 4K/8M
largest host_id for these sizes: 2000, 250, 500, 1000, 2000
longest name of a lockspace or resource: 48 bytes
longest path: 1023 bytes
most client processes: 1000
"""
