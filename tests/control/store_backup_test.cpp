// Copies of the store while it is open, restoring them, and what a start finds in place of a store.

#include "control/store_backup.h"

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "control/store.h"
#include "tests/support/requirements.h"
#include "tests/support/run.h"
#include "tests/support/temporary_directory.h"

namespace portway {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class StoreBackupTest : public testing::Test {
 protected:
  std::string path() const { return directory_ / "portway.db"; }
  std::string backup() const { return directory_ / "backup"; }
  std::unique_ptr<Store> open_store() const { return Store::open(path()).value(); }
  std::string why_not_opened() const {
    const auto store = Store::open(path());
    return store ? "" : store.error().detail;
  }

  static Instance instance_with(const std::string& id, std::int32_t tap_index) {
    Instance instance;
    instance.id = id;
    instance.guest_address = *parse_address("198.18.0.2");
    instance.tap = "tap-" + id;
    instance.owner = "acme";
    instance.session_id = make_uuid();
    instance.created_at = now();
    instance.tap_index = tap_index;
    return instance;
  }
  static std::vector<Forward> forwards_of(const Instance& instance, int first_port, int count) {
    std::vector<Forward> forwards(static_cast<std::size_t>(count));
    for (Forward& forward : forwards) {
      forward.id = make_uuid();
      forward.instance_id = instance.id;
      forward.session_id = instance.session_id;
      forward.guest_port = 3000;
      forward.host_port = static_cast<std::uint16_t>(first_port++);
      forward.created_at = now();
    }
    return forwards;
  }
  /// An instance with that many forwards.
  static void fill(Store& store, int forwards) {
    const Instance instance = instance_with("vm-1", 7);
    ASSERT_TRUE(test::run(store.put_instance(instance)));
    ASSERT_TRUE(test::run(store.add_forwards(forwards_of(instance, 1, forwards))));
  }
  static std::string fetch(const StoreBackup& backup, std::size_t piece = 4096) {
    std::string all;
    for (;;) {
      std::promise<std::string> read;
      backup.read(all.size(), piece, [&read](std::string bytes) { read.set_value(std::move(bytes)); });
      const std::string bytes = read.get_future().get();
      if (bytes.empty()) return all;
      all += bytes;
    }
  }
  void write_backup(const std::string& bytes) const {
    std::ofstream(backup(), std::ios::binary | std::ios::trunc) << bytes;
  }
  void back_up(Store& store) const { write_backup(fetch(*test::run(store.back_up()).value())); }
  void edit(const std::string& file, const std::string& sql) const {
    SQLite::Database(file, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE).exec(sql);
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_)) names.push_back(entry.path().filename());
    return names;
  }
  static std::vector<std::string> notices(Store& store) {
    std::vector<std::string> texts;
    for (const auto& notice : store.take_notices()) texts.push_back(notice.text);
    return texts;
  }

  test::TemporaryDirectory own_;
  const fs::path directory_ = own_.path();
};

TEST_F(StoreBackupTest, IsOneFileWithAllThatWasAcknowledgedAndLeavesNothingBehind) {
  const auto store = open_store();
  fill(*store, 100);
  const auto before = files();
  const auto made = test::run(store->back_up()).value();
  EXPECT_THAT(files(), testing::UnorderedElementsAreArray(before));
  ASSERT_TRUE(test::run(store->delete_instance("vm-1"))) << "what is done later is not in it";
  const std::string bytes = fetch(*made);
  EXPECT_EQ(bytes.size(), made->bytes());
  write_backup(bytes);
  EXPECT_THAT(check_backup(backup()).value(),
              HasSubstr("1 instances, 100 forwards and 0 API keys, as of 20"));
  EXPECT_FALSE(fs::exists(backup() + "-wal")) << "it is complete without one";
}

TEST_F(StoreBackupTest, TwoAtATime) {
  const auto store = open_store();
  fill(*store, 10);
  auto first = test::run(store->back_up()).value();
  const auto second = test::run(store->back_up()).value();
  const auto third = test::run(store->back_up());
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, ErrorCode::kStreamLimit);
  EXPECT_EQ(third.error().limit, 2);
  EXPECT_EQ(fetch(*first).size(), first->bytes());
  first.reset();
  EXPECT_TRUE(test::run(store->back_up()));
}

TEST_F(StoreBackupTest, CanBeReadNoMoreOnceTheStoreIsGone) {
  auto store = open_store();
  fill(*store, 10);
  const auto made = test::run(store->back_up()).value();
  store.reset();
  made->read(0, 100, [](const std::string&) { FAIL(); });
}

TEST_F(StoreBackupTest, AFullDiskTakesNoneAndKeepsNothingOfIt) {
  PORTWAY_NEEDS(geteuid() == 0 ? "" : "mounting a small filesystem needs root: run the tests with sudo");
  ASSERT_EQ(unshare(CLONE_NEWNS), 0);
  ASSERT_EQ(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  ASSERT_EQ(mount("small", directory_.c_str(), "tmpfs", 0, "size=4m"), 0);
  {
    const auto store = open_store();
    fill(*store, 2000);
    const auto before = files();
    std::ofstream filler(directory_ / "filler");
    while (filler << std::string(4096, 'x') << std::flush) {
    }
    filler.close();
    const auto refused = test::run(store->back_up());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kStoreUnavailable);
    EXPECT_THAT(refused.error().detail, AllOf(HasSubstr(path()), HasSubstr("free space there")));
    fs::remove(directory_ / "filler");
    EXPECT_THAT(files(), testing::UnorderedElementsAreArray(before));
    EXPECT_TRUE(test::run(store->back_up()));
  }
  EXPECT_EQ(umount(directory_.c_str()), 0);
}

TEST_F(StoreBackupTest, WhatACrashHasLeftOfOneIsRemovedAtTheNextStart) {
  open_store();
  for (const char* suffix : {".backup", ".backup-journal", ".new"}) std::ofstream(path() + suffix) << "half";
  open_store();
  EXPECT_THAT(files(), testing::UnorderedElementsAre("portway.db", "portway.db.lock"));
}

TEST_F(StoreBackupTest, FilesThatAreDeletedMeanwhileAreInItAllTheSame) {
  const auto store = open_store();
  fill(*store, 10);
  for (const char* suffix : {"", "-wal", "-shm", ".lock"}) fs::remove(path() + suffix);
  back_up(*store);
  EXPECT_THAT(check_backup(backup()).value(), HasSubstr("10 forwards"));
}

// --- Restoring one.

TEST_F(StoreBackupTest, RestoredIsTheStoreOfItsTime) {
  {
    const auto store = open_store();
    fill(*store, 10);
    back_up(*store);
    // Its -wal is what a copy of the file alone would be mixed with.
    ASSERT_TRUE(test::run(store->delete_instance("vm-1")));
    const auto refused = restore_store(path(), backup());
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().detail, HasSubstr("another portwayd has it open"));
    for (const char* suffix : {"", "-wal", "-shm"}) {
      fs::copy(path() + suffix, directory_ / (std::string("crashed") + suffix));
    }
  }
  for (const char* suffix : {"", "-wal", "-shm"}) {
    fs::rename(directory_ / (std::string("crashed") + suffix), path() + suffix);
  }
  EXPECT_THAT(restore_store(path(), backup()).value(), HasSubstr("1 instances, 10 forwards"));
  EXPECT_THAT(files(), testing::UnorderedElementsAre("portway.db", "portway.db.lock", "backup"));
  struct stat status {};
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  {
    const auto store = open_store();
    EXPECT_THAT(store->load_forwards().value(), SizeIs(10));
    EXPECT_THAT(notices(*store), ElementsAre(HasSubstr("is a backup of 20")));
  }
  EXPECT_THAT(notices(*open_store()), IsEmpty()) << "once";
  ASSERT_TRUE(restore_store(directory_ / "deeper" / "portway.db", backup()));
  EXPECT_THAT(Store::open(directory_ / "deeper" / "portway.db").value()->load_forwards().value(), SizeIs(10));
}

// Bob's machine may be behind the tap whose name Alice's waiting session had when the backup was made.
TEST_F(StoreBackupTest, RestoredSessionsThatWaitedForTheirMachineAreOver) {
  Instance waiting = instance_with("waiting", 0);
  Instance running = instance_with("running", 7);
  Instance with_pid = instance_with("with-pid", 0);
  with_pid.vmm_pid = 4711;
  with_pid.vmm_started = 1;
  {
    const auto store = open_store();
    int port = 20000;
    for (const Instance& instance : {waiting, running, with_pid}) {
      ASSERT_TRUE(test::run(store->put_instance(instance)));
      ASSERT_TRUE(test::run(store->add_forwards(forwards_of(instance, port += 10, 2))));
    }
    back_up(*store);
    ASSERT_EQ(store->load_forwards().value().size(), 6U) << "in the store itself they go on";
  }
  // Also if it was only copied there.
  for (const bool by_hand : {false, true}) {
    if (by_hand) {
      fs::copy(backup(), path(), fs::copy_options::overwrite_existing);
    } else {
      ASSERT_TRUE(restore_store(path(), backup()));
    }
    const auto store = open_store();
    for (const Instance& instance : store->load_instances().value()) {
      EXPECT_EQ(instance.state == InstanceState::kStopped, instance.id == "waiting") << instance.id;
    }
    EXPECT_THAT(store->load_forwards().value(), SizeIs(4));
    EXPECT_THAT(notices(*store), ElementsAre(HasSubstr("1 sessions were ended")));
  }
}

TEST_F(StoreBackupTest, WhatIsNoWholeBackupIsNotRestored) {
  {
    const auto store = open_store();
    fill(*store, 1000);
    back_up(*store);
  }
  std::ifstream file(backup(), std::ios::binary);
  const std::string good{std::istreambuf_iterator<char>(file), {}};
  const auto refused_with = [&](const std::string& why) {
    for (const auto& refused : {check_backup(backup()), restore_store(path(), backup())}) {
      ASSERT_FALSE(refused) << why;
      EXPECT_THAT(refused.error().detail, AllOf(HasSubstr("The backup " + backup()), HasSubstr(why)));
    }
    EXPECT_THAT(open_store()->load_forwards().value(), SizeIs(1000)) << "the store is as it was";
    EXPECT_FALSE(fs::exists(path() + ".new"));
  };
  write_backup(good.substr(0, good.size() / 2));
  refused_with("malformed");
  write_backup("");
  refused_with("it is no store of Portway's");
  write_backup(std::string(8192, 'x'));
  refused_with("file is not a database");
  fs::remove(backup());
  refused_with("unable to open");
  edit(backup(), "CREATE TABLE instances (id TEXT)");
  refused_with("it is no store of Portway's");
  fs::remove(backup());
  write_backup(good);
  edit(backup(), "PRAGMA user_version = 4711");
  refused_with("a newer Portway made it (schema 4711");
  write_backup(good);
  edit(backup(),
       "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'forwards_by_instance'");
  refused_with("it is damaged");
}

// --- What a start finds.

TEST_F(StoreBackupTest, AFileThatHasLostItsContentIsNotTakenForAFirstStart) {
  {
    const auto store = open_store();
    fill(*store, 1000);
  }
  const std::string restore = "restore a backup (portwayd --restore FILE)";
  fs::copy(path(), backup());
  fs::resize_file(path(), 0);
  EXPECT_THAT(why_not_opened(), AllOf(HasSubstr(path()), HasSubstr("the file is empty"), HasSubstr(restore)));
  EXPECT_EQ(fs::file_size(path()), 0U) << "it is left alone";
  for (const std::uintmax_t size : {1U, 20U, 99U, 100U, 511U, 512U, 4095U, 4096U, 8192U, 100'000U}) {
    fs::copy(backup(), path(), fs::copy_options::overwrite_existing);
    fs::resize_file(path(), size);
    EXPECT_THAT(why_not_opened(), AllOf(HasSubstr(path()), HasSubstr(restore))) << size;
    EXPECT_EQ(fs::file_size(path()), size);
  }
  ASSERT_TRUE(restore_store(path(), backup()));
  EXPECT_THAT(open_store()->load_forwards().value(), SizeIs(1000));
}

TEST_F(StoreBackupTest, AWalWithoutItsDatabaseIsNotThrownAway) {
  const std::string kept = directory_ / "kept";
  {
    const auto store = open_store();
    fill(*store, 10);
    fs::copy(path() + "-wal", kept);
  }
  fs::remove(path());
  fs::rename(kept, path() + "-wal");
  EXPECT_THAT(why_not_opened(), AllOf(HasSubstr("the file is gone, and its -wal is there"),
                                      HasSubstr("portwayd --restore FILE")));
  EXPECT_GT(fs::file_size(path() + "-wal"), 0U);
  EXPECT_FALSE(fs::exists(path()));
  fs::remove(path() + "-wal");
  EXPECT_THAT(notices(*open_store()),
              ElementsAre(HasSubstr("was missing, although portwayd has run with it")));
  EXPECT_THAT(notices(*open_store()), IsEmpty());
}

TEST_F(StoreBackupTest, AFirstStartIsNothingToReport) {
  EXPECT_THAT(notices(*open_store()), IsEmpty());
}

TEST_F(StoreBackupTest, SaysWhoseAFileMustBe) {
  PORTWAY_NEEDS(geteuid() == 0 ? "" : "another user's files need root: run the tests with sudo");
  open_store();
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(::chown(directory_.c_str(), kNobody, kNobody), 0);
  const auto as_nobody = [&] {
    const auto before = static_cast<uid_t>(setfsuid(kNobody));
    std::string why = why_not_opened();
    setfsuid(before);
    return why;
  };
  EXPECT_THAT(as_nobody(), AllOf(HasSubstr(path() + ".lock: Permission denied"), HasSubstr("(chown)")));
  ASSERT_EQ(::chown((path() + ".lock").c_str(), kNobody, kNobody), 0);
  EXPECT_THAT(as_nobody(), AllOf(HasSubstr(path() + ": open: Permission denied"), HasSubstr("(chown)")));
  ASSERT_TRUE(::unlink(path().c_str()) == 0);
  edit(backup(), "SELECT 1");
  // What root restores belongs to the daemon's user.
  {
    const auto store = Store::open(directory_ / "other.db").value();
    fill(*store, 1);
    back_up(*store);
  }
  ASSERT_TRUE(restore_store(path(), backup()));
  EXPECT_EQ(as_nobody(), "");
}

// --- Its size.

TEST_F(StoreBackupTest, TheFileShrinksOnceMostOfItIsFree) {
  fill(*open_store(), 10'000);
  const auto store = open_store();
  store->look_after_files();
  ASSERT_THAT(store->load_forwards().value(), SizeIs(10'000)) << "comes after it";
  const auto full = fs::file_size(path());
  ASSERT_TRUE(test::run(store->delete_instance("vm-1")));
  store->look_after_files();
  EXPECT_THAT(store->load_forwards().value(), IsEmpty());
  EXPECT_LT(fs::file_size(path()) * 10, full);
  EXPECT_LT(fs::file_size(path() + "-wal") * 10, full);
  EXPECT_THAT(notices(*store), IsEmpty());
}

}  // namespace
}  // namespace portway
