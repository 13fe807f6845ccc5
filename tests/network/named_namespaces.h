// Network namespaces under /run/netns, as `ip netns` makes them. /run is a tmpfs that only the test's thread,
// the threads that it starts and its children see. Failures throw std::system_error.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

#include "base/fd.h"
#include "network/namespace.h"
#include "tests/support/network.h"
#include "tests/support/requirements.h"

namespace portway::test {

inline void check(bool succeeded, const char* what) {
  if (!succeeded) throw std::system_error(errno, std::generic_category(), what);
}

class NamedNamespacesTest : public testing::Test {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(why_no_namespaces());
    before_.reset(::open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC));
    check(::unshare(CLONE_NEWNS) == 0, "unshare(CLONE_NEWNS)");
    check(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "mount --make-rprivate /");
    check(::mount("none", "/run", "tmpfs", 0, nullptr) == 0, "mount -t tmpfs /run");
  }
  void TearDown() override {
    if (!before_) return;
    check(::unshare(CLONE_FS) == 0, "unshare(CLONE_FS)");  // a sanitizer's thread may share the directory
    check(::setns(before_.get(), CLONE_NEWNS) == 0, "setns");
  }

  static void ip(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "ip");
    run_command(nullptr, std::move(arguments));
  }
  static void make(const std::string& name) { ip({"netns", "add", name}); }
  static void remove(const std::string& name) { ip({"netns", "del", name}); }

  Result<portway::NetworkNamespace::Ptr> open(const std::string& path) const {
    return portway::NetworkNamespace::open(path, directories_);
  }
  portway::NetworkNamespace::Ptr open_named(const std::string& name) const {
    return open("/run/netns/" + name).value();
  }

  std::vector<std::string> directories_{"/run/netns"};

 private:
  Fd before_;
};

}  // namespace portway::test
