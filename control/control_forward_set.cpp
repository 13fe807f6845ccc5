// Control's forwards as a set: what an instance should have is made, changed and removed in one transaction.
#include <algorithm>

#include "control/control.h"
#include "control/forward_set.h"

namespace portway {

Change<ForwardSetOutcome> Control::set_forwards(Principal caller, std::string instance_id, ForwardList list,
                                                bool dry_run, ClosePolicy policy) {
  const auto owned = co_await own_instance(instance_id);
  if (!owned) co_return owned.error();
  if (auto running = check_running(); !running) co_return running.error();
  const auto instance = find_instance(caller, instance_id);
  if (!instance) co_return instance.error();
  auto existing = registry_.forwards(instance_id);
  std::erase_if(existing, [this](const Forward* each) { return expired_.contains(each->id); });
  auto plan = plan_forward_set(caller.role, (*instance)->target, list, existing);
  if (!plan) co_return plan.error();
  if (!plan->to_create.empty()) {
    if (auto takes = check_takes("port forwards"); !takes) co_return takes.error();
  }
  auto step = check_forward_set(caller, **instance, list, *plan);
  if (!step) co_return step.error();
  ForwardSetOutcome outcome = outcome_of(*plan, *step);
  if (dry_run) co_return outcome;
  std::vector<ForwardUpdate> updates;
  for (const Forward& each : step->updated) {
    auto update = prepare_update(each);
    if (!update) co_return update.error();
    updates.push_back(std::move(*update));
  }
  auto prepared = prepare_forwards(caller, **instance, {step->created.specs, step->created.entries});
  if (!prepared) co_return prepared.error();
  outcome.created = prepared->statuses;
  const auto place = committing_.insert(committing_.end(), &*prepared);
  auto stored = co_await store_.change_forwards(prepared->forwards, step->updated, step->removed);
  committing_.erase(place);
  if (stored) stored = publish_forwards(*prepared);
  if (!stored) co_return stored.error();
  for (ForwardUpdate& update : updates) publish_update(std::move(update));
  for (const ForwardId& id : step->removed) publish_removal(id, policy);
  co_return outcome;
}

/// What is to be stored, if all of it is permitted.
Result<Control::ForwardSetStep> Control::check_forward_set(const Principal& caller, const Instance& instance,
                                                           const ForwardList& list,
                                                           const ForwardSetPlan& plan) const {
  ForwardSetStep step;
  for (const std::size_t index : plan.to_create) {
    step.created.specs.push_back(list.specs[index]);
    step.created.entries.push_back(list.entry(index));
  }
  for (const Forward& each : plan.to_remove) step.removed.push_back(each.id);
  const ForwardSpecs created{
      .list = step.created.specs, .entries = step.created.entries, .replaced = step.removed.size()};
  if (auto checked = check_forwards(caller, instance, created); !checked) return checked.error();
  for (const auto& [forward, change] : plan.to_update) {
    auto changed = changed_forward(caller, forward, change);
    if (!changed) return changed.error();
    step.updated.push_back(std::move(*changed));
  }
  return step;
}

ForwardSetOutcome Control::outcome_of(const ForwardSetPlan& plan, const ForwardSetStep& step) const {
  ForwardSetOutcome outcome;
  outcome.to_create = step.created.entries;
  outcome.to_create.erase(std::unique(outcome.to_create.begin(), outcome.to_create.end()),
                          outcome.to_create.end());  // clang 14 has no ranges::unique
  for (const Forward& each : step.updated) outcome.updated.push_back(status_of(each));
  for (const Forward& each : plan.unchanged) outcome.unchanged.push_back(status_of(each));
  for (const Forward& each : plan.to_remove) outcome.removed.push_back(status_of(each));
  return outcome;
}

}  // namespace portway
