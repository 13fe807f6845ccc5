#include "proxy/pipe_pool.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <utility>

#include "proxy/fair_share.h"

namespace portway {
namespace {

// For this long after a pipe has not taken everything, relays do not rely on pipes.
constexpr Nanos kKeepPause = std::chrono::seconds(1);

}  // namespace

PipePool::PipePool(Io& io, std::uint32_t pipes_max, WorkerCounters& counters, RelayMemory& memory,
                   const FairShare* share)
    : io_(io),
      pipes_max_(pipes_max),
      for_all_(share != nullptr ? share->pipes_for_all(pipes_max) : pipes_max),
      share_(share),
      is_short_(share != nullptr && for_all_ == 0),
      counters_(counters),
      memory_(memory) {}

PipePool::~PipePool() {
  for (const Pipe& pipe : idle_) close(pipe);
}

bool PipePool::reserve() {
  if (!idle_.empty()) return true;
  int fds[2];
  const int size = open_ < pipes_max_ ? io_.pipe(fds, kPipeSize) : -EMFILE;
  if (size < 0) {
    counters_.pipes_exhausted.add();
    return false;
  }
  ++open_;
  counters_.pipes_open.add();
  // Beyond fs.pipe-user-pages-soft an unprivileged user's pipes shrink to two pages.
  if (static_cast<std::uint32_t>(size) < kPipeSize) counters_.pipes_clamped.add();
  idle_.push_back({fds[0], fds[1], static_cast<std::uint32_t>(size)});
  return true;
}

bool PipePool::keeps_one_for(const std::atomic<std::uint32_t>& of_instance) {
  if (of_instance.load(std::memory_order_relaxed) < share_->pipes_kept_for_instance(pipes_max_)) return true;
  counters_.pipes_exhausted.add();
  return false;
}

void PipePool::count_in_use(bool more) {
  more ? counters_.pipes_in_use.add() : counters_.pipes_in_use.sub();
  is_short_ = share_ != nullptr && counters_.pipes_in_use.get() >= for_all_;
}

std::optional<Pipe> PipePool::take() {
  if (!reserve()) return std::nullopt;
  const Pipe pipe = idle_.back();
  idle_.pop_back();
  count_in_use(true);
  return pipe;
}

bool PipePool::lend(RelayState& to) {
  if (to.pipe[0] >= 0) return true;
  const auto pipe = take();
  if (!pipe) return false;
  to.pipe[0] = pipe->read_end;
  to.pipe[1] = pipe->write_end;
  to.pipe_capacity = pipe->capacity;
  return true;
}

void PipePool::adopt(const RelayState& relay) {
  if (relay.pipe[0] < 0) return;
  ++open_;
  counters_.pipes_open.add();
  count_in_use(true);
}

void PipePool::give_back(const Pipe& pipe, bool drained) {
  count_in_use(false);
  if (drained && idle_.size() < kIdleMax) {
    idle_.push_back(pipe);
  } else {
    close(pipe);
  }
}

bool PipePool::may_keep() {
  if (keep_again_at_ == Nanos::zero()) return true;
  if (io_.now() < keep_again_at_) return false;
  if (spare_owner_ != nullptr) move_spare_to_pipe();
  if (spare_owner_ != nullptr) return false;
  keep_again_at_ = Nanos::zero();
  return true;
}

void PipePool::put_in_spare(RelayState& owner, std::span<const std::byte> bytes) {
  assert(spare_owner_ == nullptr);
  spare_owner_ = &owner;
  std::ranges::copy(bytes, memory_.spare.begin());
  memory_.spare_begin = 0;
  memory_.spare_end = static_cast<std::uint32_t>(bytes.size());
  std::atomic_signal_fence(std::memory_order_seq_cst);  // from now on a successor looks here
  owner.in_spare = true;
  keep_again_at_ = io_.now() + kKeepPause;
  counters_.pipe_writes_short.add();
}

void PipePool::take_from_spare(std::size_t size) {
  memory_.spare_begin += static_cast<std::uint32_t>(size);
  if (memory_.spare_begin == memory_.spare_end) std::exchange(spare_owner_, nullptr)->in_spare = false;
}

/// The owner's sink may not read for hours, and other relays need the buffer.
void PipePool::move_spare_to_pipe() {
  RelayState& owner = *spare_owner_;
  const std::span<const std::byte> spare = memory_.in_spare();
  const auto written = lend(owner) ? io_.write(owner.pipe[1], spare.data(), spare.size()) : 0;
  if (written > 0) {
    owner.pipe_bytes += static_cast<std::uint32_t>(written);
    take_from_spare(static_cast<std::size_t>(written));
  }
  if (spare_owner_ != nullptr) keep_again_at_ = io_.now() + kKeepPause;
}

void PipePool::close(const Pipe& pipe) {
  io_.close(pipe.read_end);
  io_.close(pipe.write_end);
  --open_;
  counters_.pipes_open.sub();
  if (pipe.capacity < kPipeSize) counters_.pipes_clamped.sub();
}

}  // namespace portway
