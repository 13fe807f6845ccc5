#include "fleet/fleet_follower.h"

#include <malloc.h>

#include <utility>

#include "fleet/etcd.h"

namespace portway {

Result<std::unique_ptr<FleetFollower>> FleetFollower::create(const boost::asio::any_io_executor& executor,
                                                             FollowerOptions options) {
  auto etcd = Etcd::create(executor, std::move(options.etcd));
  if (!etcd) return etcd.error();
  return std::unique_ptr<FleetFollower>(new FleetFollower(executor, options, std::move(*etcd)));
}

FleetFollower::FleetFollower(const boost::asio::any_io_executor& executor, const FollowerOptions& options,
                             std::shared_ptr<Etcd> etcd)
    : keys_(options.prefix),
      listener_(options.listener),
      mirror_(executor, std::move(etcd), {.keys = keys_.all(), .check_period = options.check_period}, *this) {
}

void FleetFollower::end_listing(std::int64_t revision) {
  view_.become(std::move(*listed_));
  listed_.reset();
  ::malloc_trim(0);  // of the view before, all of which has become free at once
  if (listener_ != nullptr) listener_->on_relisted(revision);
}

void FleetFollower::put(const EtcdKeyValue& kv) {
  if (listed_) return listed_->put(kv.key, kv.value);
  if (listener_ != nullptr) before_ = view_.value(kv.key);
  view_.put(kv.key, kv.value);
}

void FleetFollower::erase(const std::string& key, std::int64_t /*revision*/) {
  if (listener_ != nullptr) before_ = view_.value(key);
  view_.erase(key);
}

void FleetFollower::on_event(const EtcdEvent& event) {
  if (listener_ != nullptr) listener_->on_change(event, before_);
}

}  // namespace portway
