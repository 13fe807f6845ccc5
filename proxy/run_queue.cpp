#include "proxy/run_queue.h"

namespace portway {

void RunQueue::add_message(Entry& entry, Lane& lane) {
  if (entry.place_ == Place::kMessages) return;
  if (entry.place_ == Place::kStreams) streams_.erase(streams_.iterator_to(entry));
  entry.place_ = Place::kMessages;
  if (lane.empty()) lanes_.push_back(&lane);
  lane.push_back(entry);
  ++messages_;
}

void RunQueue::add_stream(Entry& entry) {
  if (entry.place_ != Place::kNone) return;
  entry.place_ = Place::kStreams;
  streams_.push_back(entry);
}

}  // namespace portway
