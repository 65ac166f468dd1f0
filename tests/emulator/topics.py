"""SNS: a mail address must confirm its subscription, and nobody here reads mail. moto takes every subscription for confirmed.

SNS API Reference Subscribe: the owner of an endpoint by mail must confirm; ListSubscriptionsByTopic shows `PendingConfirmation` in
place of the ARN until then; Unsubscribe of such a one is refused (it goes with its topic, or after two days).
"""

from typing import Any

from moto.sns.models import SNSBackend, Subscription

from .corrections import corrects, refuse

BY_MAIL = ("email", "email-json")


@corrects(SNSBackend)
def get_subscription_attributes(original: Any, backend: SNSBackend, arn: str) -> dict[str, Any]:
    attributes = original(backend, arn)
    if backend.subscriptions[arn].protocol in BY_MAIL:
        attributes = attributes | {"PendingConfirmation": "true", "ConfirmationWasAuthenticated": "false"}
    return attributes


@corrects(SNSBackend)
def unsubscribe(original: Any, backend: SNSBackend, subscription_arn: str) -> None:
    subscription = backend.subscriptions.get(subscription_arn)
    if subscription is not None and subscription.protocol in BY_MAIL:
        raise refuse("InvalidParameter", "Cannot unsubscribe a subscription that is pending confirmation")
    original(backend, subscription_arn)


def _listed(subscription: Subscription) -> str:
    return "PendingConfirmation" if subscription.protocol in BY_MAIL else subscription.arn


Subscription.subscription_arn = property(_listed)
