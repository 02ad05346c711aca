"""DISA on Ray clusters: a plugin for verl (tested with 0.9.1) that patches nothing, and a launcher that checks first.

Reads ``1_tasks``, ``5_anchor`` and the reference, writes ``RUN/verl``. verl passes a policy loss neither log Z nor
log pi_ref, so the residual comes in three pieces that verl adds up itself::

    score      beta r - log Z                          reward function (``reward``)
    advantage  A = score - (log pi_old - log pi_ref)   verl's own KL in the reward, coefficient 1, and a pass-through
                                                       estimator that adds the anchored baseline b (``plugin``)
    loss       ((log pi - log pi_old) - (A + b))^2 = (log Z + log pi - log pi_ref - beta r - b)^2   (``plugin``)

log pi_old cancels, so the loss is the frozen residual's whatever engine measured log pi_old.
"""
