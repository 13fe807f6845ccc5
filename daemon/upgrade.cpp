#include "daemon/upgrade.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <iterator>
#include <string_view>
#include <system_error>
#include <utility>

#include "daemon/child_process.h"
#include "daemon/succession.h"
#include "handover/transfer.h"

namespace portway {
namespace {

namespace asio = boost::asio;

constexpr std::chrono::seconds kBeginMax(10);  // for the check, and for the new process to ask

std::vector<std::string> own_arguments() {
  std::vector<std::string> all = command_line_of(::getpid());
  std::erase(all, "--take-over");
  return all;
}

std::string what_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("it was ended by signal {}", WTERMSIG(status));
  return fmt::format("it ended with {}", WEXITSTATUS(status));
}

}  // namespace

Upgrade::Upgrade(asio::io_context& context, UnconfinedThread& starter, std::string path, Steps steps)
    : context_(context),
      starter_(starter),
      path_(std::move(path)),
      steps_(std::move(steps)),
      arguments_(own_arguments()),
      program_(installed_program()),
      patience_(context) {}

void Upgrade::start() {
  running_ = true;
  spdlog::info("upgrade: {} checks the configuration", program_);
  spawn({"--reads-handover=" + handover_version(), "--check"}, [this] { on_checked(); });
}

void Upgrade::stop() {
  running_ = true;  // no other one begins
  patience_.cancel();
  exit_.reset();
  successor_.reset();
  close_listener();
  if (process_ != 0) end_process(std::exchange(process_, 0));
}

void Upgrade::spawn(std::vector<std::string> extra_arguments, Then on_exit) {
  std::vector<std::string> arguments = arguments_;
  std::ranges::move(extra_arguments, std::back_inserter(arguments));
  int error = 0;
  // It gets what it needs by another way, and must keep nothing open that ends with this process.
  starter_.run_and_wait([&] { process_ = start_process(program_, std::move(arguments), true, error); });
  if (process_ == 0) return fail(fmt::format("{}: {}", program_, std::system_category().message(error)));
  await_exit(std::move(on_exit));
}

void Upgrade::await_exit(Then then) {
  const int watched = static_cast<int>(::syscall(SYS_pidfd_open, process_, 0));
  if (watched < 0) {
    const int error = errno;
    end_process(process_);
    return fail(fmt::format("pidfd_open: {}", std::system_category().message(error)));
  }
  exit_.emplace(context_, watched);
  exit_->async_wait(asio::posix::stream_descriptor::wait_read,
                    [this, then = std::move(then)](boost::system::error_code error) {
                      if (error) return;
                      ::waitpid(process_, &status_, 0);
                      process_ = 0;
                      patience_.cancel();
                      then();
                    });
  wait_with_patience();
}

/// For the new process to take its next step.
void Upgrade::wait_with_patience() {
  patience_.expires_after(kBeginMax);
  patience_.async_wait([this](boost::system::error_code error) {
    if (!error && process_ != 0) ::kill(process_, SIGKILL);
  });
}

void Upgrade::on_checked() {
  if (status_ != 0)
    return fail(fmt::format("the new binary refuses to begin, as the log says: {}", what_ended(status_)));
  int error = 0;
  Fd listener = listen_for_successor(path_, error);
  if (!listener) return fail(fmt::format("{}: {}", path_, std::system_category().message(error)));
  listener_.emplace(context_, listener.release());
  spawn({"--take-over"},
        [this] { fail(fmt::format("the new process does not begin: {}", what_ended(status_))); });
  if (process_ != 0) await_successor();
}

void Upgrade::await_successor() {
  listener_->async_wait(asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code error) {
    if (error) return;
    Fd successor(::accept4(listener_->native_handle(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!successor || user_of_peer(successor.get()) != ::geteuid()) return await_successor();
    close_listener();
    successor_ = std::move(successor);
    wait_with_patience();
    steps_.prepare([this] { on_successor(); });
  });
}

void Upgrade::on_successor() {
  if (!successor_) return;  // it has ended meanwhile
  exit_.reset();
  patience_.cancel();
  fail(steps_.hand_over(successor_, process_).detail);
}

/// Goes on as if nothing had been asked.
void Upgrade::fail(const std::string& why) {
  spdlog::error("upgrade: this process continues: {}", why);
  close_listener();
  exit_.reset();
  successor_.reset();
  process_ = 0;
  running_ = false;
  steps_.on_failure(why);
}

void Upgrade::close_listener() {
  if (listener_) ::unlink(path_.c_str());
  listener_.reset();
}

}  // namespace portway
