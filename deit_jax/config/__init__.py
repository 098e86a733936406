"""What a run is: the fields, the door at which a ConfigDict becomes a frozen `Config`, and complete recipes."""
