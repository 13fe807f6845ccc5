// What SQLite does not tell: that a write-ahead log has lost changes that had been acknowledged. SQLite takes
// the log for ended at the first frame whose checksum is wrong, as a crash in the middle of a write leaves
// one, and continues with what came before it. A broken disk, or whoever cuts the file off, leaves the same.
#pragma once

#include <string>

namespace portway {

/// What the log beside the database `path` held and recovery will not find, in words for an operator; empty
/// where nothing is known to be lost. Call it before SQLite opens the database, which overwrites the
/// evidence; nothing may be writing to it.
///
/// A crash is no damage: what it cuts off is the last transaction, which was not acknowledged. There is
/// damage where a transaction beyond the first bad frame was followed by another one, which was begun once
/// the first was on disk (synchronous=FULL), and where the index beside the log (-shm, which survives the
/// process, and never is ahead of the disk) counts more frames than are good. Damage to the very last
/// transaction alone, after a reboot, looks like a crash, and is not found. Formats:
/// https://www.sqlite.org/walformat.html.
std::string wal_damage(const std::string& path);

}  // namespace portway
