#include "control/store_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

namespace portway {
namespace {

namespace fs = std::filesystem;

constexpr off_t kDatabaseMin = 512;  // SQLite's smallest page; it takes a file of a byte for a new one
constexpr off_t kLockedByte = off_t{1} << 62;  // SQLite locks bytes near 1 GiB
constexpr std::string_view kOpenElsewhere =
    "another portwayd has it open; stop that one, or set store.path to another file";

// What killed daemons have left: of files that were being written again, and of backups.
constexpr auto kLeftovers =
    std::to_array<const char*>({".new", ".new-journal", ".backup", ".backup-journal"});

/// A new directory's name is as durable as its parent: fsync(2) says "explicitly".
int sync_directory(const fs::path& path) {
  const Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return directory && ::fsync(directory.get()) == 0 ? 0 : errno;
}

/// Makes what is missing of an absolute path; returns an errno.
int make_directories(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return 0;
  if (path.has_parent_path() && path.parent_path() != path) {
    if (const int error = make_directories(path.parent_path()); error != 0) return error;
  }
  if (::mkdir(path.c_str(), 0700) != 0) return errno;
  return sync_directory(path.parent_path());
}

Result<void> make_directory_of(const std::string& path) {
  const int error = make_directories(fs::path(path).parent_path());
  if (error == 0) return {};
  return store_call_failed(path, "mkdir of its directory", error);
}

/// Created when missing. SQLite would make it readable for everybody; what it adds beside it has the file's
/// mode.
Fd open_file(const std::string& path, int flags) {
  return Fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, 0600));
}

/// Of the open file, whatever its name is; an errno. Unlike fcntl(2)'s other locks it does not end with the
/// next close(2) of some descriptor of the file.
int lock_open_file(const Fd& file) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kLockedByte;
  lock.l_len = 1;
  return ::fcntl(file.get(), F_OFD_SETLK, &lock) == 0 ? 0 : errno;
}

}  // namespace

const std::string_view kRestoreOrDelete =
    "restore a backup (portwayd --restore FILE), or move the file with its -wal and -shm away to start "
    "without "
    "instances, forwards and API keys";

Error store_unavailable(const std::string& path, const std::string& what) {
  return {ErrorCode::kStoreUnavailable, "The store " + path + ": " + what + "."};
}

Error store_call_failed(const std::string& path, const std::string& call, int number) {
  const std::string what = call + ": " + std::generic_category().message(number);
  if (number == ENOSPC || number == EDQUOT)
    return store_unavailable(path, what + "; free space on its filesystem");
  if (number == EROFS) return store_unavailable(path, what + "; mount its filesystem writable");
  const bool denied = number == EACCES || number == EPERM;
  return store_unavailable(path, what + (denied ? "; give it and its directory to user " : "; let user ") +
                                     std::to_string(geteuid()) +
                                     (denied ? " (chown)" : " write to its directory") +
                                     ", or set store.path to another place");
}

Result<StoreFiles> StoreFiles::lock(const std::string& path) {
  if (auto made = make_directory_of(path); !made) return made.error();
  StoreFiles files(path);
  if (auto locked = files.lock_name(); !locked) return locked.error();
  files.remember(kLock);
  files.database_.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!files.database_ && errno != ENOENT) return store_call_failed(path, "open", errno);
  if (!files.database_) return files;
  const int error = lock_open_file(files.database_);
  if (error == EAGAIN || error == EACCES) {
    return store_unavailable(path, std::string(kOpenElsewhere) + " (by another name: it has " +
                                       std::to_string(files.names()) + ", or is mounted twice)");
  }
  if (error != 0) return store_call_failed(path, "fcntl(F_OFD_SETLK)", error);
  return files;
}

Result<StoreFiles> StoreFiles::open(const std::string& path, const Create& create) {
  auto files = lock(path);
  if (!files) return files;
  for (const char* suffix : kLeftovers) ::unlink((path + suffix).c_str());
  struct stat status {};
  if (files->database_) {
    if (::fstat(files->database_.get(), &status) != 0) return store_call_failed(path, "fstat", errno);
    if (status.st_size >= kDatabaseMin) return files;
    return store_unavailable(path, "the file is empty, or cut off after " + std::to_string(status.st_size) +
                                       " bytes: its content is lost; " + std::string(kRestoreOrDelete));
  }
  if (::stat(files->name(kWal).c_str(), &status) == 0 && status.st_size > 0) {
    return store_unavailable(path, "the file is gone, and its -wal is there, with changes to it; " +
                                       std::string(kRestoreOrDelete));
  }
  auto made = files->make_successor();
  if (!made) return made;
  if (auto created = create(made->path_); !created) return created.error();
  if (auto named = files->hand_over(*made); !named) return named.error();
  return made;
}

Result<StoreFiles> StoreFiles::look(const std::string& path) {
  StoreFiles files(path);
  files.lock_again();
  if (!files.lock_ && errno == EWOULDBLOCK) return store_unavailable(path, std::string(kOpenElsewhere));
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return store_call_failed(path, "stat", errno);
  if (!S_ISREG(status.st_mode) || status.st_size < kDatabaseMin) {
    return store_unavailable(path, "it has no content");
  }
  return files;
}

void StoreFiles::lock_again() {
  auto lock = std::make_shared<Fd>(::open(name(kLock).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!*lock) return;
  if (::flock(lock->get(), LOCK_EX | LOCK_NB) == 0) {
    lock_ = std::move(lock);
    return;
  }
  const int error = errno;
  lock.reset();
  errno = error;
}

Result<void> StoreFiles::copy_to(const std::string& directory) const {
  const auto last_write = [&] {
    std::array<fs::file_time_type, 2> times{};
    std::error_code none;
    for (const File file : {kDatabase, kWal}) times[file] = fs::last_write_time(name(file), none);
    return times;
  };
  const auto before = last_write();
  for (const File file : {kDatabase, kWal}) {
    std::error_code error;
    fs::copy_file(name(file), fs::path(directory) / fs::path(name(file)).filename(), error);
    if (error && !(file == kWal && error == std::errc::no_such_file_or_directory)) {
      return store_call_failed(path_, "copy of " + name(file) + " to " + directory, error.value());
    }
  }
  if (last_write() == before) return {};
  return store_unavailable(path_, "another program is writing to it; end that program");
}

bool is_open_elsewhere(const Error& error) {
  return error.detail.find(kOpenElsewhere) != std::string::npos;
}

Result<void> StoreFiles::lock_name() {
  const std::string lock_path = name(kLock);
  lock_ = std::make_shared<Fd>(open_file(lock_path, 0));
  if (!*lock_) return store_call_failed(path_, "open of " + lock_path, errno);
  if (::flock(lock_->get(), LOCK_EX | LOCK_NB) == 0) return {};
  const int error = errno;
  if (error != EWOULDBLOCK) return store_call_failed(path_, "flock of " + lock_path, error);
  return store_unavailable(path_, std::string(kOpenElsewhere));
}

Result<StoreFiles> StoreFiles::make_successor() const {
  if (auto made = make_directory_of(path_); !made) return made.error();
  StoreFiles files(path_ + ".new");
  ::unlink(files.path_.c_str());  // of an attempt before
  files.database_ = open_file(files.path_, O_EXCL);
  if (!files.database_) return store_call_failed(path_, "open of " + files.path_, errno);
  if (const int error = lock_open_file(files.database_); error != 0) {
    return store_call_failed(path_, "fcntl(F_OFD_SETLK)", error);
  }
  return files;
}

Result<void> StoreFiles::hand_over(StoreFiles& successor) {
  if (::fsync(successor.database_.get()) != 0)
    return store_call_failed(path_, "fsync of " + successor.path_, errno);
  if (auto locked = keep_lock(); !locked) return locked.error();
  // SQLite would take the old log's pages for the new database's.
  for (const File file : {kWal, kShm}) {
    if (::unlink(name(file).c_str()) != 0 && errno != ENOENT) {
      return store_call_failed(path_, "unlink of " + name(file), errno);
    }
  }
  if (::rename(successor.path_.c_str(), path_.c_str()) != 0) return store_call_failed(path_, "rename", errno);
  remember(kDatabase);
  if (const int error = sync_directory(fs::path(path_).parent_path()); error != 0) {
    return store_call_failed(path_, "fsync of its directory", error);
  }
  successor.path_ = path_;
  successor.lock_ = lock_;
  return {};
}

Result<void> StoreFiles::keep_lock() {
  if (fate(kLock) == Fate::kInPlace) return {};
  if (auto made = make_directory_of(path_); !made) return made.error();
  StoreFiles by_name(path_);
  if (auto locked = by_name.lock_name(); !locked) return locked.error();
  lock_ = by_name.lock_;
  remember(kLock);
  return {};
}

void StoreFiles::remember() {
  for (std::size_t file = 0; file < kFiles; ++file) remember(static_cast<File>(file));
}

void StoreFiles::remember(File file) {
  struct stat status {};
  if (::stat(name(file).c_str(), &status) == 0) identities_[file] = {status.st_dev, status.st_ino};
}

std::string StoreFiles::change() const {
  std::string text;
  for (std::size_t i = 0; i < kFiles; ++i) {
    const auto file = static_cast<File>(i);
    const Fate found = fate(file);
    if (found == Fate::kInPlace) continue;
    text += (text.empty() ? "" : ", ") + fs::path(name(file)).filename().string() +
            (found == Fate::kGone ? " is gone" : " is another file now");
  }
  return text;
}

StoreFiles::Fate StoreFiles::fate(File file) const {
  struct stat status {};
  // What cannot be looked at now (EACCES, EIO) is not taken for gone.
  if (::stat(name(file).c_str(), &status) != 0) {
    return errno == ENOENT || errno == ENOTDIR ? Fate::kGone : Fate::kInPlace;
  }
  return Identity{status.st_dev, status.st_ino} == identities_[file] ? Fate::kInPlace : Fate::kReplaced;
}

unsigned long StoreFiles::names() const {
  struct stat status {};
  return ::fstat(database_.get(), &status) == 0 ? status.st_nlink : 1;
}

}  // namespace portway
